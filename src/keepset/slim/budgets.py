"""Shares of a budget, site by site: what is left out where, for a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np


def equal(sizes: Mapping[str, int], share: float) -> dict[str, float]:
    """The same share everywhere."""
    return dict.fromkeys(sizes, share)


def cheapest(
    costs: Mapping[str, Sequence[float]],
    shares: Sequence[float],
    sizes: Mapping[str, int],
    target: float,
) -> dict[str, float]:
    """Shares that save `target` bytes at the least cost, where costs of sites add up.

    Greedy: step by step, the site whose next step costs least per byte. Steps are those of the
    lower convex hull of each site's costs, for which greedy is optimal; the last may overshoot.

    Args:
        costs: Site key -> what leaving out each of `shares` costs, from the same start.
        shares: Ascending, the first 0.
        sizes: Site key -> the bytes that a share of 1 would save.
        target: Bytes.

    Returns:
        Site key -> one of `shares`.

    Example:
        >>> costs = {"a": [0.0, 1.0, 4.0], "b": [0.0, 2.0, 4.0]}
        >>> cheapest(costs, [0.0, 0.25, 0.5], {"a": 100, "b": 100}, target=50)
        {'a': 0.25, 'b': 0.25}
    """
    steps = []
    for key, values in costs.items():
        corners = _hull(shares, values)
        for before, after in pairwise(corners):
            gain = (shares[after] - shares[before]) * sizes[key]
            steps.append(((values[after] - values[before]) / gain, key, shares[after], gain))
    chosen, saved = dict.fromkeys(costs, shares[0]), 0.0
    for _, key, share, gain in sorted(steps):
        if saved >= target:
            break
        chosen[key] = share
        saved += gain
    return chosen


def _hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Places of the corners of the lower convex hull of a rising curve."""
    # A cost that falls as more is left out is noise.
    levels = np.maximum.accumulate(np.asarray(y, dtype=np.float64))
    corners: list[int] = []
    for place in range(len(x)):
        while len(corners) > 1 and not _turns_up(x, levels, corners[-2], corners[-1], place):
            corners.pop()
        corners.append(place)
    return corners


def _turns_up(x: Sequence[float], y: np.ndarray, a: int, b: int, c: int) -> bool:
    return bool((y[b] - y[a]) * (x[c] - x[b]) < (y[c] - y[b]) * (x[b] - x[a]))
