"""Phantom and corporeal channels: where the weights and the energy of a channel disagree."""

from __future__ import annotations

import numpy as np
import pandas as pd

from keepset.analyse.significance import groups

QUADRANTS = ("phantom", "strong", "idle", "corporeal")
"""phantom: low weight, high energy; corporeal: high weight, low energy (GHOST, arXiv:2602.11408).
strong: high in both; idle: low in both."""

_CELL = ["study", "model", "origin", "corpus"]


def with_quadrants(channels: pd.DataFrame) -> pd.DataFrame:
    """The channels with the quadrant that each falls in.

    Args:
        channels: `channels` tables of any models and corpora; may be empty.

    Returns:
        The table with columns weight_median and energy_median, taken over all channels of a model
        and corpus, and `quadrant`. A channel is high where it is above the median.
    """
    if not len(channels):
        return channels
    texts = channels.groupby(_CELL, sort=False)
    medians = {name: texts[name].transform("median") for name in ("magnitude", "energy")}
    heavy, busy = (channels[name] > medians[name] for name in ("magnitude", "energy"))
    quadrant = np.select(
        [~heavy & busy, heavy & busy, ~heavy & ~busy], QUADRANTS[:3], default=QUADRANTS[3]
    )
    return channels.assign(
        weight_median=medians["magnitude"], energy_median=medians["energy"], quadrant=quadrant
    )


def shares(channels: pd.DataFrame) -> pd.DataFrame:
    """The share of each quadrant, and how far two rankings differ at half the channels.

    Args:
        channels: What `with_quadrants` returned.

    Returns:
        One row per model and corpus: n_channels; a share per quadrant; `disagreement`, of the
        channels that energy keeps at 50% of the whole model the share that the weights cut, and
        `disagreement_uniform`, the same with half of every layer and group kept. Rankings that
        have nothing in common differ in a half. Ties go to the earlier channel.
    """
    table = []
    for cell, group in groups(channels, _CELL):
        counts = group["quadrant"].value_counts(normalize=True)
        layers = group.groupby(["layer", "group"], sort=False).indices.values()
        table.append(
            {
                **cell,
                "n_channels": len(group),
                **{name: float(counts.get(name, 0.0)) for name in QUADRANTS},
                "disagreement": _disagreement([group]),
                "disagreement_uniform": _disagreement([group.iloc[rows] for rows in layers]),
            }
        )
    return pd.DataFrame(table)


def _disagreement(parts: list[pd.DataFrame]) -> float:
    """Of the channels kept by energy, half of each part, the share that the weights cut."""
    kept = lost = 0
    for part in parts:
        by_energy, by_weight = (_top_half(part[name]) for name in ("energy", "magnitude"))
        kept += len(by_energy)
        lost += len(by_energy - by_weight)
    return lost / kept


def _top_half(values: pd.Series) -> set[int]:
    order = np.argsort(-values.to_numpy(), kind="stable")
    return set(order[: len(order) - len(order) // 2].tolist())
