"""What is known of every single unit, as tables: its size, and how much it should matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from keepset.calibrate.channels import Sums
from keepset.rules.scores import Moments, ghost
from keepset.sites.ffn import Site, first_units
from keepset.sites.state import StateSite


def unit_table(
    sites: Sequence[Site], moments: Mapping[str, Moments], groups: Sequence[int] | None = None
) -> pd.DataFrame:
    """Size and three notions of impact of every unit.

    Args:
        sites: The sites, in order.
        moments: Their calibration sums (`keepset.calibrate.activations`).
        groups: The groups of documents whose text counts; all of it if left out.

    Returns:
        Columns layer, unit (counted through all sites of the layer), magnitude (mean |h|), weight
        (||w||), output (the root mean square change of the layer's output when the unit alone is
        left out, sqrt(mean h^2) ||w||) and, where gradients were taken, taylor (|sum h dL/dh| per
        token, nats).
    """
    tables = []
    first = first_units(sites)
    for site in sites:
        sums = moments[site.key]
        norm, n_tokens = sums["weight_norm"], _over(groups, sums["tokens"])
        columns = {
            "layer": site.layer,
            "unit": range(first[site.key], first[site.key] + site.n_units),
            "magnitude": (_over(groups, sums["abs_by_group"]) / n_tokens).numpy(),
            "weight": norm.numpy(),
            "output": ((_over(groups, sums["square_by_group"]) / n_tokens).sqrt() * norm).numpy(),
        }
        if "taylor_by_group" in sums:
            slope = _over(groups, sums["taylor_by_group"])
            columns["taylor"] = (slope.abs() / n_tokens).numpy()
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _over(groups: Sequence[int] | None, by_group: Tensor) -> Tensor:
    """The sum over some groups: (n_groups, ...) -> (...).

    A sum of what counts, and no difference: a unit that is silent there stays at exactly 0.
    """
    return (by_group if groups is None else by_group[list(groups)]).sum(dim=0)


def channel_table(
    sites: Sequence[StateSite], sums: Mapping[str, Sums], identity: Mapping[str, Any]
) -> pd.DataFrame:
    """The `channels` table of docs/METHODS.md: one row per channel, and per group left out.

    `left_out` is -1 where all text counts, else the group of documents that does not.
    """
    tables = []
    for site in sites:
        whole = sums[site.key]
        for left_out, part in enumerate([whole, *whole.left_out], start=-1):
            columns = {
                "layer": site.layer,
                "group": torch.arange(site.n_groups).repeat_interleave(site.n_state).numpy(),
                "channel": torch.arange(site.n_state).repeat(site.n_groups).numpy(),
                "left_out": left_out,
                "magnitude": _flat(part.magnitude),
                "energy": _flat(part.energy.sqrt()),
                "controllability": _flat(part.controllability.sqrt()),
                "observability": _flat(part.observability.sqrt()),
            }
            if part.taylor is not None:
                columns["taylor"] = _flat(part.taylor)
            if part.change is not None:
                columns["ghost"] = _flat(ghost(part))
            tables.append(pd.DataFrame({**identity, **columns}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _flat(values: Tensor) -> Any:
    return values.flatten().numpy()
