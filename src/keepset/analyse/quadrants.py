"""Phantom and corporeal channels: where the weights and the energy of a channel disagree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keepset.analyse.correlation import NOTHING
from keepset.analyse.significance import groups

QUADRANTS = ("phantom", "strong", "idle", "corporeal")
"""phantom: low weight, high energy; corporeal: high weight, low energy (GHOST, arXiv:2602.11408).
strong: high in both; idle: low in both."""

_CELL = ["study", "model", "origin", "corpus"]


def parted(channels: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Whether weight and energy sort a channel into different halves.

    Args:
        channels: magnitude and energy of channels.
        by: Columns; each of their groups has medians of its own.

    Returns:
        bool by channel. Low is at or below the median, high is above.
    """
    return _high(channels, "magnitude", by) != _high(channels, "energy", by)


def _high(channels: pd.DataFrame, score: str, by: Sequence[str]) -> pd.Series:
    return channels[score] > channels.groupby(list(by), sort=False)[score].transform("median")


def with_quadrants(channels: pd.DataFrame) -> pd.DataFrame:
    """The channels, scored on all text, with the quadrant that each falls in.

    Args:
        channels: `channels` tables of any models and corpora; may be empty.

    Returns:
        The rows where nothing is left out, with columns weight_median and energy_median, taken
        over all channels of a model and corpus, and `quadrant`. A channel is high where it is
        above the median.
    """
    if not len(channels):
        return channels
    channels = channels[channels["left_out"] == NOTHING].drop(columns="left_out")
    texts = channels.groupby(_CELL, sort=False)
    medians = {name: texts[name].transform("median") for name in ("magnitude", "energy")}
    heavy, busy = (_high(channels, name, _CELL) for name in ("magnitude", "energy"))
    quadrant = np.select(
        [~heavy & busy, heavy & busy, ~heavy & ~busy], QUADRANTS[:3], default=QUADRANTS[3]
    )
    return channels.assign(
        weight_median=medians["magnitude"], energy_median=medians["energy"], quadrant=quadrant
    )


def shares(channels: pd.DataFrame) -> pd.DataFrame:
    """The share of each quadrant, and on how many channels the two rankings disagree at half.

    Args:
        channels: What `with_quadrants` returned.

    Returns:
        One row per model and corpus: n_channels; a share per quadrant; `disagreement`, the share
        of channels that weight and energy sort into different halves, phantom and corporeal
        together; and `disagreement_uniform`, the same with the halves of every layer and group.
        Rankings that have nothing in common differ in a half.
    """
    table = []
    for cell, rows in groups(channels, _CELL):
        counts = rows["quadrant"].value_counts(normalize=True)
        share = {name: float(counts.get(name, 0.0)) for name in QUADRANTS}
        within = {
            "disagreement": float(parted(rows, _CELL).mean()),
            "disagreement_uniform": float(parted(rows, ["layer", "group"]).mean()),
        }
        table.append({**cell, "n_channels": len(rows), **share, **within})
    return pd.DataFrame(table)
