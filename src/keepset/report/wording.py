"""What texts, tables and figures for readers share: numbers in words, and orders."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def percent(share: float) -> str:
    """0.95 -> "95%"."""
    return f"{100 * share:g}%"


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in the order in which they first appear."""
    return list(dict.fromkeys(values))


def number(value: float) -> str:
    """Three significant digits, large numbers whole."""
    if value != value:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratio(value: float) -> str:
    """As `number`; near one, enough digits to see what it differs from one by."""
    return f"{value:.3f}" if abs(value - 1) < 0.1 else number(value)


def bound(row: Any) -> str:
    """Where the claim says that the number lies."""
    if not row.cases:
        return ""
    low, high = row.bound_low, row.bound_high
    if math.isnan(high):
        return f"> {number(low)}"
    return f"< {number(high)}" if math.isnan(low) else f"{number(low)} to {number(high)}"
