"""Tensors in a safetensors file that says what it belongs to; equal content gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from keepset.errors import CacheError
from keepset.files.store import replacing

# One key only: safetensors writes several keys in an order that differs between processes.
_KEY = "keepset"


def save(
    tensors: Mapping[str, Tensor], path: str | Path, kind: str, owner: Mapping[str, Any]
) -> None:
    """Write tensors, atomically.

    Args:
        tensors: Name -> tensor.
        path: The .safetensors file.
        kind: What the file holds, with a version.
        owner: What it belongs to, in JSON types; `load` checks it.
    """
    content = json.dumps({"format": kind, "identity": dict(owner)}, sort_keys=True)
    with replacing(path) as temporary:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            temporary,
            metadata={_KEY: content},
        )


def load(path: str | Path, kind: str, owner: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """Read tensors, sorted by name, and refuse those that belong to something else.

    Args:
        path: The file.
        kind: As for `save`.
        owner: What it must belong to.
        what: The content, for messages.

    Raises:
        CacheError: the file is missing or corrupt, or differs from `owner`; the message names
            the difference.
    """
    with _opened(path, what) as archive:
        stored = _owner(path, archive, kind, what)
        for key in sorted({*stored, *owner}):
            if stored.get(key) != owner.get(key):
                raise CacheError(
                    f"{path}: stale {what}: {key} is {stored.get(key)!r} in the file and"
                    f" {owner.get(key)!r} now; delete the file and run the workflow again"
                )
        return {name: archive.get_tensor(name) for name in sorted(archive.keys())}


def owner_of(path: str | Path, kind: str, what: str) -> dict[str, Any]:
    """What a file belongs to.

    Raises:
        CacheError: the file is missing, corrupt, or of another kind.
    """
    with _opened(path, what) as archive:
        return _owner(path, archive, kind, what)


@contextmanager
def _opened(path: str | Path, what: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as archive:
            yield archive
    except (SafetensorError, OSError) as error:
        raise CacheError(
            f"{path}: the {what} cannot be read ({error}); delete the file and run the workflow"
            " again"
        ) from None


def _owner(path: str | Path, archive: Any, kind: str, what: str) -> dict[str, Any]:
    content = json.loads((archive.metadata() or {}).get(_KEY, "{}"))
    if content.get("format") != kind:
        raise CacheError(f"{path}: not the {what} of this version; delete the file and rerun")
    owner: dict[str, Any] = content["identity"]
    return owner
