"""Keep sets of state channels as a file, and what is known of the channels as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from keepset.calibrate.channels import Masks, Scorer, Sums, ghost
from keepset.calibrate.memory import peak_bytes
from keepset.files import archive
from keepset.sites import StateSite

FORMAT = "keepset-state-2"
Sets = dict[tuple[str, int, float], Masks]
"""(score, seed, sparsity) -> the channels that are kept."""


def save_sets(sets: Sets, path: str | Path, identity: Mapping[str, Any]) -> None:
    """Write keep sets, atomically, with the identity of what they were chosen on."""
    tensors = {
        f"{score}|{seed}|{sparsity!r}|{key}": mask.to(torch.uint8)
        for (score, seed, sparsity), masks in sets.items()
        for key, mask in masks.items()
    }
    archive.save(tensors, path, FORMAT, identity)


def load_sets(path: str | Path, identity: Mapping[str, Any]) -> Sets:
    """Read keep sets, and refuse those of another model, text or setting.

    Raises:
        CacheError: the file is damaged, or belongs to something else; the message says what.
    """
    sets: Sets = {}
    for name, mask in archive.load(path, FORMAT, identity, "keep sets").items():
        score, seed, sparsity, key = name.split("|")
        sets.setdefault((score, int(seed), float(sparsity)), {})[key] = mask.bool()
    return sets


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
