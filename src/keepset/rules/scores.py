"""The registry of scores: one number per unit that says how much it matters (docs/METHODS.md).

A *static* score ranks the units of a site once, from sums over calibration text. A score *per
token* ranks them again for every token or window. Adding a score is one entry in the registry of
its kind of site; the configuration's schema, the grids, figures and help derive from it.

Nothing here imports torch at its start: the configuration is checked against this registry.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepset.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Moments = Mapping[str, "Tensor"]
"""Per-unit float64 sums of one site over calibration text, as the activation cache holds them."""


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        name: As the configuration and the result tables spell it.
        static: Ranks units once; None where the score has no static form. Of neurons:
            (moments, seed) -> (n_units,) float64. Of state channels: (sums) -> (n_groups, n_state)
            float64, where `sums` are `keepset.calibrate.channels.Sums`.
        token: Ranks units at every token; None where it cannot. Of neurons:
            (h (..., n_units), norms (n_units,), generator) -> (..., n_units) float32, never
            negative. Of state channels: (sizes, C, generator), both (..., groups, n_state).
        gradients: Whether the static form needs the gradient of the loss.
        decodes: Whether the form per token can choose while a model decodes. It is |h|, times the
            norms where it needs them: kernels take it from h themselves.
        seeded: Whether it depends on a seed, so that several are run.
        needs_norms: Whether the form per token needs the norms of the output columns.
        reads_gate: Whether the form per token takes act(gate(x)) of a gated block in the place of
            h, so that neither the up nor the down projection of a unit that is left out is needed.
        centred: Whether the form per token takes h - c in the place of h, c the centre of the site,
            and a unit that is left out takes c in the place of zero.
        in_order: Whether it is taken again after every layer that was pruned, as GHOST does.
        uniform: Whether every layer keeps the same share; else one threshold serves all layers.
    """

    name: str
    static: Callable[..., Tensor] | None = None
    token: Callable[..., Tensor] | None = None
    gradients: bool = False
    decodes: bool = False
    seeded: bool = False
    needs_norms: bool = False
    reads_gate: bool = False
    centred: bool = False
    in_order: bool = False
    uniform: bool = False


Scores = Mapping[str, Score]


def _registry(*scores: Score) -> dict[str, Score]:
    return {score.name: score for score in scores}


def random_numbers(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform numbers in [0, 1), float64: the static form of random scores."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _random_like(values: Tensor, generator: torch.Generator | None) -> Tensor:
    import torch

    return torch.rand(values.shape, generator=generator, device=values.device)


def _taylor_of_neurons(moments: Moments, _: int) -> Tensor:
    if "taylor_sum" not in moments:
        raise ConfigError("score taylor needs gradients, and this activation cache has none")
    return moments["taylor_sum"].abs()


def _taylor_of_channels(sums: Any) -> Tensor:
    if sums.taylor is None:
        raise ConfigError("score taylor needs gradients, and none were taken")
    taylor: Tensor = sums.taylor
    return taylor


def ghost(sums: Any) -> Tensor:
    """GHOST's score (arXiv:2602.11408): the root mean square change of y.

    Under a delta rule it is an estimate of that. (n_groups, n_state) float64.
    """
    root: Tensor = sums.ghost.sqrt()
    return root


def _separate(sums: Any) -> Tensor:
    """The product of the averages: it misses when a large state meets a large read-out."""
    root: Tensor = (sums.controllability * sums.observability).sqrt()
    return root


NEURON_SCORES = _registry(
    Score(
        "magnitude",
        static=lambda moments, _: moments["abs_sum"],
        token=lambda h, *_: h.abs().float(),
        decodes=True,
    ),
    Score(
        "impact",
        static=lambda moments, _: moments["impact_sum"],
        token=lambda h, norms, _: h.abs().float().mul_(norms),
        decodes=True,
        needs_norms=True,
    ),
    Score("weight", static=lambda moments, _: moments["weight_norm"]),
    Score("taylor", static=_taylor_of_neurons, gradients=True),
    Score(
        "random",
        static=lambda moments, seed: random_numbers(moments["abs_sum"].shape, seed),
        token=lambda h, _, generator: _random_like(h, generator),
        seeded=True,
    ),
    # SCAP (arXiv:2412.07174).
    Score("centred", token=lambda offsets, *_: offsets.abs().float(), centred=True),
    # CATS (arXiv:2404.08763).
    Score("gate", token=lambda gates, *_: gates.abs().float(), reads_gate=True),
)
"""Scores of the inputs of a linear map, FFN neurons first of all (METHODS, section 2)."""

INPUT_SCORES = {name: score for name, score in NEURON_SCORES.items() if not score.reads_gate}
"""Scores of the inputs of all other linear maps."""

CHANNEL_SCORES = _registry(
    Score("ghost", static=ghost, in_order=True),
    Score("ghost-uniform", static=ghost, in_order=True, uniform=True),
    Score("ghost-oneshot", static=ghost),
    Score("ghost-separate", static=_separate, in_order=True),
    Score("magnitude", static=lambda sums: sums.magnitude, token=lambda sizes, *_: sizes),
    Score("magnitude-uniform", static=lambda sums: sums.magnitude, uniform=True),
    Score("taylor", static=_taylor_of_channels, gradients=True),
    Score("impact", token=lambda sizes, C, _: sizes * C.square()),
    Score(
        "random",
        static=None,
        token=lambda sizes, _, generator: _random_like(sizes, generator),
        seeded=True,
        uniform=True,
    ),
)
"""Scores of state channels (METHODS, section 7)."""


EXPERT_SCORES = _registry(
    Score(
        "magnitude",
        static=lambda moments, _: moments["abs_sum"],
        token=lambda weights, _: weights,
    ),
    Score("impact", static=lambda moments, _: moments["impact_sum"]),
    Score(
        "random",
        static=lambda moments, seed: random_numbers(moments["abs_sum"].shape, seed),
        token=lambda weights, generator: _random_like(weights, generator),
        seeded=True,
    ),
)
"""Scores of routed experts: the router's weight, and the measured change of the layer's output."""


def static_names(scores: Scores) -> tuple[str, ...]:
    """The scores that can choose once, on calibration text, in the registry's order."""
    return tuple(name for name, score in scores.items() if score.static or score.seeded)


def token_names(scores: Scores) -> tuple[str, ...]:
    """The scores that can be taken again at every token without labels or gradients."""
    return tuple(name for name, score in scores.items() if score.token)


def decoding_names(scores: Scores) -> tuple[str, ...]:
    """The scores that can choose while a model decodes."""
    return tuple(name for name, score in scores.items() if score.decodes)


def need_gradients(scores: Scores, names: Iterable[str]) -> bool:
    """Whether one of `names` needs the gradient of the loss."""
    return any(scores[name].gradients for name in names)


def corpus_score(name: str, moments: Moments, *, seed: int = 0) -> Tensor:
    """Score the units of one site on calibration text.

    Args:
        name: A key of `NEURON_SCORES` with a static form.
        moments: The site's sums, each (n_units,) float64.
        seed: Only seeded scores use it.

    Returns:
        (n_units,) float64; larger is kept first. Sums rank as means do.

    Raises:
        ConfigError: the score is unknown, or needs gradients that the cache does not hold.
    """
    score = NEURON_SCORES.get(name)
    if score is None or score.static is None:
        raise ConfigError(
            f"unknown score {name!r}; known: {', '.join(static_names(NEURON_SCORES))}"
        )
    return score.static(moments, seed)


def site_seed(seed: int, key: str) -> int:
    """A seed of its own for every site, the same on every machine."""
    return zlib.crc32(f"{seed}:{key}".encode())


def token_score(
    name: str, h: Tensor, norms: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Score every unit at every token.

    Args:
        name: A key of `NEURON_SCORES` with a form per token.
        h: Activations (..., n_units).
        norms: ||w_j||_2 (n_units,), for scores that need them.
        generator: For seeded scores.

    Returns:
        (..., n_units), float32, never negative.

    Raises:
        ConfigError: the score cannot be taken per token.
    """
    score = NEURON_SCORES.get(name)
    if score is None or score.token is None or (score.needs_norms and norms is None):
        raise ConfigError(
            f"score {name!r} cannot be taken per token; use one of"
            f" {', '.join(token_names(NEURON_SCORES))}, or window: corpus"
        )
    return score.token(h, norms, generator)
