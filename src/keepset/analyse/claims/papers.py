"""The papers' numbers, as data: what was published, where, and how it was read."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import pandas as pd

from keepset.errors import KeepsetError

_PLACE = re.compile(r"\{(?P<claim>\w+):(?P<condition>[^@{}]+)(@(?P<model>[^{}]+))?\}")


@cache
def numbers() -> pd.DataFrame:
    """The papers' numbers.

    Returns:
        Columns claim, paper, shown_in (figure or table), model, ffn, dataset, quantity, condition,
        value (as printed), reading (how exactly it can be read).
    """
    with resources.files(__package__).joinpath("papers.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str)


def _rows(claim: str, condition: str) -> pd.DataFrame:
    table = numbers()
    return table[(table["claim"] == claim) & (table["condition"] == condition)]


def values(claim: str, condition: str, model: str | None = None) -> pd.Series:
    """The numbers of one claim under one condition, of one model or of all.

    Raises:
        KeepsetError: there is none.
    """
    rows = _rows(claim, condition)
    if model is not None:
        rows = rows[rows["model"] == model]
    if not len(rows):
        raise KeepsetError(f"papers.csv: no number of {claim} under {condition} {model or ''}")
    return rows["value"]


def spread(claim: str, condition: str) -> float:
    """The largest difference between datasets within one model."""
    rows = _rows(claim, condition)
    by_model = rows["value"].astype(float).groupby(rows["model"])
    return float((by_model.max() - by_model.min()).max())


def fill(template: str) -> str:
    """Put numbers in the places of a template.

    Args:
        template: With places {claim:condition}, which take the range over models and datasets,
            {claim:condition@model}, and {claim:spread}.

    Raises:
        KeepsetError: there is no such number.
    """
    return _PLACE.sub(_number, template)


def _number(place: re.Match[str]) -> str:
    claim, condition = place["claim"], place["condition"]
    if condition == "spread":
        return f"{spread(claim, 'dense'):.2f}"
    printed = values(claim, condition, place["model"])
    low, high = min(printed, key=float), max(printed, key=float)
    return low if float(low) == float(high) else f"{low} to {high}"
