"""Write complete files or none, and tables with their provenance."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from keepset.files.lock import lock

PathLike = str | Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` only if the block succeeds.

    On any error the temporary file is removed and an existing `path` stays unchanged. The next
    write of `path` removes temporary files of killed processes; those of running processes are
    locked.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    temporary = Path(name)
    try:
        lock(handle)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    pattern = f".{glob.escape(path.name)}.*{glob.escape(path.suffix)}"
    for temporary in path.parent.glob(pattern):
        try:
            handle = os.open(temporary, os.O_RDWR)
        except OSError:
            continue  # its writer has just finished
        try:
            if lock(handle):
                temporary.unlink(missing_ok=True)
        finally:
            os.close(handle)


def write_json(content: Any, path: str | Path) -> None:
    """Write `content` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_table(table: pd.DataFrame, path: str | Path, provenance: dict[str, Any]) -> None:
    """Write a tidy table as Parquet, and its provenance as a JSON file (see `sidecar`)."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
        write_json(provenance, sidecar(path))


def sidecar(path: str | Path) -> Path:
    """The provenance file of a table: `x.parquet` -> `x.json`."""
    return Path(path).with_suffix(".json")


def fingerprint(*parts: bytes | str) -> str:
    """SHA-256 over `parts`, each after its length, so that the boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
