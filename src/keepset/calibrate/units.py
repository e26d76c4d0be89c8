"""What is known of every single unit, as tables: its size, and how much it should matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from keepset.calibrate.channels import Sums
from keepset.rules.scores import Moments, ghost
from keepset.sites.ffn import Site
from keepset.sites.state import StateSite


def unit_table(
    sites: Sequence[Site], moments: Mapping[str, Moments], n_tokens: int
) -> pd.DataFrame:
    """Size and three notions of impact of every unit.

    Args:
        sites: The sites, in order.
        moments: Their calibration sums over `n_tokens` tokens.
        n_tokens: How many tokens were summed.

    Returns:
        Columns layer, unit, magnitude (mean |h|), weight (||w||), output (the root mean square
        change of the layer's output when the unit alone is left out, sqrt(mean h^2) ||w||) and,
        where gradients were taken, taylor (|sum h dL/dh| per token, nats).
    """
    tables = []
    for site in sites:
        sums = moments[site.key]
        columns = {
            "layer": site.layer,
            "unit": range(site.n_units),
            "magnitude": sums["abs_sum"].numpy() / n_tokens,
            "weight": sums["weight_norm"].numpy(),
            "output": ((sums["square_sum"] / n_tokens).sqrt() * sums["weight_norm"]).numpy(),
        }
        if "taylor_sum" in sums:
            columns["taylor"] = sums["taylor_sum"].abs().numpy() / n_tokens
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def channel_table(
    sites: Sequence[StateSite], sums: Mapping[str, Sums], identity: Mapping[str, Any]
) -> pd.DataFrame:
    """One row per channel: the `channels` table of docs/METHODS.md."""
    tables = []
    for site in sites:
        site_sums = sums[site.key]
        columns = {
            "layer": site.layer,
            "group": torch.arange(site.n_groups).repeat_interleave(site.n_state).numpy(),
            "channel": torch.arange(site.n_state).repeat(site.n_groups).numpy(),
            "magnitude": _flat(site_sums.magnitude),
            "energy": _flat(ghost(site_sums)),
            "controllability": _flat(site_sums.controllability.sqrt()),
            "observability": _flat(site_sums.observability.sqrt()),
        }
        if site_sums.taylor is not None:
            columns["taylor"] = _flat(site_sums.taylor)
        tables.append(pd.DataFrame({**identity, **columns}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _flat(values: Tensor) -> Any:
    return values.flatten().numpy()
