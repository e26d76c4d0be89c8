"""The scores: one number per unit that says how much it matters (docs/METHODS.md, section 2).

Corpus scores rank the units of a site once, from the activation cache. Token scores rank them
again for every token or window, from the activations at hand. Adding a score is one function and
one entry in `SCORES` (and in `TOKEN_SCORES` where it can be computed per token).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from keepset.errors import ConfigError

Moments = Mapping[str, Tensor]
"""Per-unit float64 sums of one site over the calibration tokens, as `trace` writes them."""


def _magnitude(moments: Moments, _: int) -> Tensor:
    return moments["abs_sum"]


def _weight(moments: Moments, _: int) -> Tensor:
    return moments["weight_norm"]


def _impact(moments: Moments, _: int) -> Tensor:
    return moments["impact_sum"]


def _taylor(moments: Moments, _: int) -> Tensor:
    if "taylor_sum" not in moments:
        raise ConfigError("score taylor needs gradients, and this activation cache has none")
    return moments["taylor_sum"].abs()


def _random(moments: Moments, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(moments["abs_sum"].shape, generator=generator, dtype=torch.float64)


SCORES: dict[str, Callable[[Moments, int], Tensor]] = {
    "magnitude": _magnitude,
    "impact": _impact,
    "weight": _weight,
    "taylor": _taylor,
    "random": _random,
}


def corpus_score(name: str, moments: Moments, *, seed: int = 0) -> Tensor:
    """Score the units of one site on calibration text.

    Args:
        name: A key of `SCORES`.
        moments: The site's sums, each (n_units,) float64.
        seed: Only `random` uses it.

    Returns:
        (n_units,) float64; larger is kept first. Sums rank as means do.

    Raises:
        ConfigError: the score is unknown, or needs gradients that the cache does not hold.
    """
    if name not in SCORES:
        raise ConfigError(f"unknown score {name!r}; known: {', '.join(SCORES)}")
    return SCORES[name](moments, seed)


def site_seed(seed: int, key: str) -> int:
    """A seed of its own for every site, the same on every machine."""
    return zlib.crc32(f"{seed}:{key}".encode())


TOKEN_SCORES = ("magnitude", "impact", "random")
"""Scores that can be taken again at every token without labels or gradients."""


def token_score(
    name: str, h: Tensor, norms: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Score every unit at every token.

    Args:
        name: A member of `TOKEN_SCORES`.
        h: Activations (..., n_units).
        norms: ||w_j||_2 (n_units,), for `impact`.
        generator: For `random`.

    Returns:
        (..., n_units), float32, never negative.

    Raises:
        ConfigError: the score cannot be taken per token.
    """
    if name == "magnitude":
        return h.abs().float()
    if name == "impact" and norms is not None:
        return h.abs().float().mul_(norms)
    if name == "random":
        return torch.rand(h.shape, generator=generator, device=h.device)
    raise ConfigError(
        f"score {name!r} cannot be taken per token; use one of {', '.join(TOKEN_SCORES)},"
        " or window: corpus"
    )
