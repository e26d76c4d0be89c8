"""Scores and a sparsity -> keep masks. Ties go to the lowest index, everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from keepset.errors import ConfigError, ModelError
from keepset.rules.rule import Rule, Window

NOT_A_NUMBER = "NaN among the scores of units: nothing can be chosen; try dtype: float32"

Masks = Mapping[str, Tensor]
"""Site key -> bool, True where a unit is kept: (n_units,), or (n_groups, n_state) of a state."""


class KeepSets(Protocol):
    """What static rules keep: a dict, or anything that makes the masks when they are asked for."""

    def __getitem__(self, rule: Rule, /) -> Masks:
        """The masks of a rule.

        Raises:
            KeyError: nothing was chosen for this rule.
        """


def rank_units(score: Tensor) -> Tensor:
    """Unit indices, best first: (n_units,) -> (n_units,) int64. A prefix is a keep set.

    Raises:
        ModelError: a score is NaN.
    """
    if bool(score.isnan().any()):
        raise ModelError(NOT_A_NUMBER)
    return torch.argsort(score, descending=True, stable=True)


def _kth_largest(score: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row, (rows, n) -> (rows, 1)."""
    if score.device.type == "cpu":
        # introselect: three times as fast as topk here, and it needs no order among the kept
        place = score.shape[1] - k
        return torch.from_numpy(np.partition(score.numpy(), place, axis=1)[:, place : place + 1])
    return score.topk(k, dim=1).values[:, -1:]


def top_mask(score: Tensor, k: int, *, zeros_matter: bool = True) -> Tensor:
    """Mark the k largest of each row; ties go to the lowest index.

    Args:
        score: (..., n) float32, without NaN.
        k: 1 <= k <= n.
        zeros_matter: False lets rows that have fewer than k positive scores keep all their
            zeros, where a zero score means a zero activation: the product is the same, and the
            tie-break, which every row of a ReLU site would need, is saved.

    Returns:
        (..., n) bool with exactly k True per row (more where `zeros_matter` is False).

    Raises:
        ConfigError: k is out of range.
        ModelError: a score is NaN.
    """
    n = score.shape[-1]
    if not 1 <= k <= n:
        raise ConfigError(f"cannot keep {k} of {n} units")
    if bool(score.isnan().any()):
        raise ModelError(NOT_A_NUMBER)
    if k == n:
        return torch.ones_like(score, dtype=torch.bool)
    rows = score.reshape(-1, n)
    threshold = _kth_largest(rows, k)
    mask = rows >= threshold
    counts = mask.sum(dim=1)
    tied = counts > k
    if not zeros_matter:
        tied &= threshold[:, 0] > 0
    if bool(tied.any()):
        index = tied.nonzero()[:, 0]
        mask[index] = _break_ties(rows[index], threshold[index], k)
    return mask.view(score.shape)


def _break_ties(rows: Tensor, threshold: Tensor, k: int) -> Tensor:
    above = rows > threshold
    equal = rows == threshold
    n_tied = k - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= n_tied))


def top_units(score: Tensor, k: int, *, zeros: bool = True) -> Tensor:
    """The k largest of one row, as indices: the set of `top_mask`, at less cost per token.

    Args:
        score: (n,) float32, without NaN, never negative.
        k: 1 <= k <= n.
        zeros: False leaves out units of score zero, so that fewer than k may remain.

    Returns:
        (k,) int64, in no promised order; ties went to the lowest index.

    Raises:
        ConfigError: k is out of range.
        ModelError: a score is NaN.
    """
    n = len(score)
    if not 1 <= k <= n:
        raise ConfigError(f"cannot keep {k} of {n} units")
    # One more than is kept shows whether the k-th is tied: topk itself breaks ties in any order.
    best, units = score.topk(min(k + 1, n))
    last, *next_best, first = [*best[k - 1 :].tolist(), float(best[0])]
    if math.isnan(first):
        raise ModelError(NOT_A_NUMBER)
    if not zeros and last == 0:
        return units[best > 0]
    if next_best == [last]:
        return top_mask(score[None], k)[0].nonzero()[:, 0]
    return units[:k]


def window_width(window: Window, tokens: int) -> int:
    """How many tokens a window has in a passage of `tokens`."""
    return tokens if window == "sequence" else min(int(window), tokens)


def window_means(score: Tensor, valid: Tensor | None, window: Window) -> Tensor:
    """Mean token score within each window of a batch of passages.

    Args:
        score: (batch, tokens, n).
        valid: (batch, tokens) bool, False at padding; None where nothing is padded.
        window: Tokens per window, or "sequence" for the whole passage. The last window may be
            shorter.

    Returns:
        (batch, n_windows, n); zero for windows without valid tokens.
    """
    batch, tokens, n = score.shape
    width = window_width(window, tokens)
    if width == 1:
        return score
    if valid is not None:
        score = score * valid[..., None]
    counts = valid.float() if valid is not None else score.new_ones(batch, tokens)
    pad = -tokens % width
    if pad:
        score = torch.nn.functional.pad(score, (0, 0, 0, pad))
        counts = torch.nn.functional.pad(counts, (0, pad))
    sums = score.view(batch, -1, width, n).sum(dim=2)
    return sums / counts.view(batch, -1, width).sum(dim=2).clamp_(min=1)[..., None]


def spread_windows(mask: Tensor, tokens: int, window: Window) -> Tensor:
    """Repeat each window's mask over its tokens: (batch, n_windows, n) -> (batch, tokens, n)."""
    width = window_width(window, tokens)
    return mask if width == 1 else mask.repeat_interleave(width, dim=1)[:, :tokens]
