"""Keep sets of state channels as a file, and what is known of the channels as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from keepset.errors import CacheError
from keepset.memory import peak_bytes
from keepset.sites import StateSite
from keepset.state.score import Masks, Scorer, Sums, ghost
from keepset.store import replacing

FORMAT = "keepset-state-1"
Sets = dict[tuple[str, int, float], Masks]
"""(score, seed, sparsity) -> the channels that are kept."""


def save_sets(sets: Sets, path: str | Path, identity: Mapping[str, Any]) -> None:
    """Write keep sets, atomically, with the identity of what they were chosen on."""
    tensors = {
        f"{score}|{seed}|{sparsity!r}|{key}": mask.to(torch.uint8)
        for (score, seed, sparsity), masks in sets.items()
        for key, mask in masks.items()
    }
    metadata = {"format": FORMAT, "identity": json.dumps(dict(identity), sort_keys=True)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_sets(path: str | Path, identity: Mapping[str, Any]) -> Sets:
    """Read keep sets, and refuse those of another model, text or setting.

    Raises:
        CacheError: the file is damaged, or belongs to something else; the message says what.
    """
    sets: Sets = {}
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            _check(path, metadata, identity)
            for name in sorted(archive.keys()):
                score, seed, sparsity, key = name.split("|")
                masks = sets.setdefault((score, int(seed), float(sparsity)), {})
                masks[key] = archive.get_tensor(name).bool()
    except (SafetensorError, OSError) as error:
        raise CacheError(
            f"{path}: the keep sets cannot be read ({error}); delete the file and run the workflow"
            " again"
        ) from None
    return sets


def _check(path: str | Path, metadata: Mapping[str, str], identity: Mapping[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        raise CacheError(f"{path}: not keep sets of this version; delete the file and rerun")
    found = json.loads(metadata["identity"])
    for key in sorted({*found, *identity}):
        if found.get(key) != identity.get(key):
            raise CacheError(
                f"{path}: stale keep sets: {key} is {found.get(key)!r} there and"
                f" {identity.get(key)!r} here; delete the file and run the workflow again"
            )


def channel_table(
    sites: Sequence[StateSite], sums: Mapping[str, Sums], identity: Mapping[str, Any]
) -> pd.DataFrame:
    """One row per channel: the `channels` table of docs/METHODS.md."""
    tables = []
    for site in sites:
        own = sums[site.key]
        columns = {
            "layer": site.layer,
            "group": torch.arange(site.n_groups).repeat_interleave(site.n_state).numpy(),
            "channel": torch.arange(site.n_state).repeat(site.n_groups).numpy(),
            "magnitude": _flat(own.magnitude),
            "energy": _flat(ghost(own)),
            "controllability": _flat(own.controllability.sqrt()),
            "observability": _flat(own.observability.sqrt()),
        }
        if own.taylor is not None:
            columns["taylor"] = _flat(own.taylor)
        tables.append(pd.DataFrame({**identity, **columns}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _flat(values: Tensor) -> Any:
    return values.flatten().numpy()


def memory_table(scorer: Scorer, blocks: Tensor, identity: Mapping[str, Any]) -> pd.DataFrame:
    """Peak memory of a plain forward pass, of GHOST's and of Taylor's scoring.

    Args:
        scorer: The model; its own calibration text is not used.
        blocks: (n, tokens) int64; measured on one block and on two, one batch each.
        identity: Leading columns.

    Returns:
        The `memory` table of docs/METHODS.md: method, peak_bytes (beyond the weights), n_tokens.
    """
    rows = []
    device = next(scorer.model.parameters()).device
    for n in (1, 2):
        part = blocks[:n]
        own = Scorer(scorer.model, scorer.sites, part, part.numel())

        def forward(part: Tensor = part) -> None:
            with torch.inference_mode():
                scorer.model.base_model(input_ids=part.to(device), use_cache=False)  # type: ignore[operator]

        work: dict[str, Callable[[], Any]] = {
            "forward": forward,
            "ghost": own.one_shot,
            "taylor": own.gradients,
        }
        for method, do in work.items():
            peak = peak_bytes(do, device)
            rows.append(
                {**identity, "method": method, "peak_bytes": peak, "n_tokens": part.numel()}
            )
    return pd.DataFrame(rows)
