"""The masked reference of decoding: what the tokens should be, and how far rounding moves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keepset.calibrate.sets import RankedSets
from keepset.hold.contexts import with_bos
from keepset.hold.static import MASKED
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.models.identity import still_to_do
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.rules.scores import Moments
from keepset.settings import Kernels
from keepset.sites.ffn import find_ffn_sites

_DRAWS = 5


@dataclass(frozen=True)
class Disagreement:
    """The first new token that is not the masked reference's.

    Attributes:
        index: Its place among the new tokens.
        token: What was generated.
        expected: The reference's choice.
        gap: How much more logit the reference gives to its own choice.
    """

    index: int
    token: int
    expected: int
    gap: float


def disagreement(
    model: Any,
    ids: Tensor,
    new: Tensor,
    rule: Rule | Recipe | None,
    moments: Mapping[str, Moments] | None = None,
    kernels: Kernels | Selection | str | None = None,
    bos: int | None = None,
) -> Disagreement | None:
    """Compare new tokens with those of the masked reference, `keepset.hold`, in torch.

    One teacher-forced pass over prompt and new tokens, without a key-value cache, decides for all
    of them: keep sets and logits at a token depend on the tokens up to it alone, so as long as
    tokens agree both runs have the same past.

    Args:
        model: The model, outside any rule.
        ids: The prompt, (1, n).
        new: The new tokens, (m,).
        rule: The rule or recipe that they were generated under.
        moments: Calibration sums, for static rules.
        kernels: Which implementations run the reference's mixers.
        bos: The token that was put before the prompt.

    Returns:
        None if every token is the reference's greedy choice, else the first that is not.

    Raises:
        ModelError: the reference's logits are not finite; the message names the first layer at
            fault.
    """
    logits = reference_logits(model, ids, new, rule, moments, kernels, bos)
    best = logits.argmax(dim=-1)
    wrong = (best != new).nonzero()[:, 0]
    if not len(wrong):
        return None
    index = int(wrong[0])
    token, expected = int(new[index]), int(best[index])
    gap = float(logits[index, expected] - logits[index, token])
    return Disagreement(index, token, expected, gap)


def reference_logits(
    model: Any,
    ids: Tensor,
    new: Tensor,
    rule: Rule | Recipe | None,
    moments: Mapping[str, Moments] | None = None,
    kernels: Kernels | Selection | str | None = None,
    bos: int | None = None,
    *,
    noise: int | None = None,
) -> Tensor:
    """The masked reference's logits at each of the new tokens: (m, words), on the CPU.

    Args:
        model, ids, new, rule, moments, kernels, bos: As in `disagreement`.
        noise: Seed of noise in the last bit of what dynamic rules hold; none if left out.

    Raises:
        ModelError: as `disagreement`.
    """
    text = torch.cat([ids, new[None, :-1].to(ids.device)], dim=1)
    context = with_bos(text, bos)
    plain = Selection.of(kernels).wanted.model_copy(update={"ffn": "torch"})
    if isinstance(rule, Recipe):
        rule = still_to_do(model, rule)
    runner = Runner(
        model,
        find_ffn_sites(model) if is_of_neurons(rule) else find_sites(model),
        keep_sets=RankedSets(moments or {}, rule.site if isinstance(rule, Rule) else "ffn"),
        kernels=Selection(plain, forced=[MASKED]),
        bos=bos,
    )
    with runner.holding(rule, noise=noise), torch.inference_mode():
        logits: Tensor = model(input_ids=context, use_cache=False).logits[0, -len(new) :].cpu()
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        runner.blame("the logits are", text, rule)
    return logits


def moved_by_rounding(
    model: Any, ids: Tensor, new: Tensor, rule: Rule | Recipe, **options: Any
) -> float:
    """How far noise in the last bit moves the masked reference's logits before the last new token.

    A choice of the largest turns a difference in the last bit into another set, and later layers
    choose from what that gave: where two units of a large one are near, one flip moves logits by
    whole units.

    Args:
        model, ids, new, rule: As in `reference_logits`.
        options: moments, kernels and bos, as there.

    Returns:
        The largest change of a logit over `_DRAWS` draws of noise.
    """
    plain = reference_logits(model, ids, new, rule, **options)[-1]
    draws = (
        reference_logits(model, ids, new, rule, noise=draw, **options)[-1]
        for draw in range(1, _DRAWS + 1)
    )
    return max(float((noisy - plain).abs().max()) for noisy in draws)


def is_of_neurons(rule: Rule | Recipe | None) -> bool:
    """Whether feed-forward sites are all that a rule holds."""
    return rule is None or (isinstance(rule, Rule) and rule.site == "ffn")
