"""Perplexity: ratios of two settings on the same text, and how far they are known.

The unit is the *document*: blocks of one document are alike, so documents are what text is a
sample of. What cannot be known (one document) is NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keepset.errors import KeepsetError


class Estimate(NamedTuple):
    """An estimate, its standard error, and the degrees of freedom of that."""

    value: float
    error: float
    df: float


class Rounding(NamedTuple):
    """Variance of a log perplexity over runs that differ in the last bit; degrees of freedom."""

    variance: float
    df: float


def perplexity(nll: float, n: float) -> float:
    """exp(nats / n); infinite where that overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll) / n))


def nats_per_token(nats: ArrayLike, n_tokens: ArrayLike, document: ArrayLike) -> Estimate:
    """Nats per token of text that is a sample of documents: a ratio of two sums.

    value = sum nats / sum tokens. With e_d = nats_d - value * tokens_d, the residual of document d
    of D, error = sqrt(D / (D - 1) * sum e_d^2) / sum tokens, and df = D - 1 (Cochran, Sampling
    Techniques, 1977, section 6.4). Where documents have equally many tokens this is the mean of the
    documents, and its t-test the one-sample t-test.

    Args:
        nats: (blocks,) nats of each block; mostly a difference of two settings.
        n_tokens: (blocks,) predicted tokens.
        document: (blocks,) number of the document that each block is from.

    Returns:
        error is NaN with one document.

    Raises:
        KeepsetError: lengths differ, there is no block, or a value is not finite.
    """
    x, n = (np.asarray(values, dtype=np.float64) for values in (nats, n_tokens))
    documents = np.asarray(document)
    if not x.shape == n.shape == documents.shape or x.ndim != 1 or len(x) == 0:
        raise KeepsetError(
            f"blocks need lists of one length, got {x.shape}, {n.shape}, {documents.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(n).all() and (n > 0).all()):
        raise KeepsetError("blocks need a finite nll and at least one token each")
    names, index = np.unique(documents, return_inverse=True)
    value = float(x.sum() / n.sum())
    if len(names) < 2:
        return Estimate(value, math.nan, 0.0)
    residuals = np.bincount(index, weights=x) - value * np.bincount(index, weights=n)
    spread = len(names) / (len(names) - 1) * float((residuals**2).sum())
    return Estimate(value, math.sqrt(spread) / float(n.sum()), len(names) - 1.0)


def rounding(nll: ArrayLike, n_tokens: ArrayLike) -> Rounding:
    """How much a log perplexity varies over runs of one rule that differ in the last bit only.

    A choice of the largest at every token turns a difference in the last bit, as between two
    processors, into other units, and those into other losses.

    Args:
        nll: (draws, blocks) nats of each run.
        n_tokens: (blocks,) predicted tokens.

    Returns:
        The sample variance over draws of sum nll / sum n_tokens, with draws - 1 degrees of freedom.

    Raises:
        KeepsetError: there are fewer than two draws, shapes do not fit, or a value is not finite.
    """
    runs, n = np.asarray(nll, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    if runs.ndim != 2 or runs.shape[1:] != n.shape or len(runs) < 2:
        raise KeepsetError(
            f"rounding needs draws x blocks, and two draws or more, got {runs.shape} for"
            f" {n.shape} blocks; set statistics.rounding_draws to 2 or more, or to 0"
        )
    if not np.isfinite(runs).all():
        raise KeepsetError("rounding: nll is not finite; run the model in float32")
    return Rounding(float((runs.sum(axis=1) / n.sum()).var(ddof=1)), len(runs) - 1.0)
