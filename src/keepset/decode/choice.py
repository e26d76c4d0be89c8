"""What the tokens of one site keep while a model decodes under a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from keepset.calibrate.sets import RankedSets
from keepset.decode.position import Position
from keepset.decode.score import SCORES, UnitScore
from keepset.errors import ConfigError, ModelError
from keepset.hold.windows import not_finite
from keepset.rules.masks import Masks, top_mask
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import Moments, token_score
from keepset.sites.ffn import Site

Rules = Mapping[str, Rule]
"""Site key -> the rule of that site; others run dense."""


@dataclass(frozen=True, eq=False)
class UnitChoice:
    """How each token of a site chooses its units.

    Attributes:
        site: The site.
        rule: Its rule.
        least: How many units are kept, an int; or the least score that is kept, a float.
        norms: What |h_j| is multiplied by to score it, (n_units,) float32; None: by nothing.
        fixed: The units that every token keeps, (n_units,) bool; None where tokens choose.
    """

    site: Site
    rule: Rule
    least: int | float
    norms: Tensor | None
    fixed: Tensor | None = None

    def mask(self, h: Tensor) -> Tensor:
        """Which units tokens h (..., n_units) keep, as bool; units with h = 0 may be either.

        Raises:
            ModelError: a score is NaN; the message names the site.
        """
        if self.fixed is not None:
            return self.fixed.to(h.device)
        scores = token_score(self.rule.score, h, self.norms, None)
        if isinstance(self.least, float):
            if bool(scores.isnan().any()):
                raise self.not_finite()
            return scores >= self.least
        try:
            return top_mask(scores, self.least, zeros_matter=False)
        except ModelError:
            raise self.not_finite() from None

    def not_finite(self) -> ModelError:
        """The error of a score that is NaN."""
        return not_finite(self.site.name, describe(self.rule))

    def hold(self, h: Tensor, position: Position) -> Tensor:
        """Zero what tokens h (..., n_units) of the running pass do not keep.

        The first token of a context runs dense.
        """
        if position.opens and position.tokens == 1:
            return h
        rows = h.reshape(position.batch, position.tokens, self.site.n_units)
        held = rows * self.mask(rows)
        if position.opens:
            held[:, 0] = rows[:, 0]
        return held.view(h.shape)


def choice_of(
    site: Site, rule: Rule, threshold: float | None = None, fixed: Tensor | None = None
) -> UnitChoice:
    """What a rule keeps at a site.

    Args:
        site: The site.
        rule: A dynamic rule, or a static one.
        threshold: The least score that is kept, in the place of the rule's share.
        fixed: The units that a static rule keeps, (n_units,) bool.
    """
    if fixed is not None:
        # To the kernel a unit that is left out has the norm 0; those of score 0 add nothing.
        return UnitChoice(site, rule, 0.0, fixed.float(), fixed)
    score = UnitScore(site, rule)
    if threshold is None:
        return UnitChoice(site, rule, score.k, score.norms)
    # The kernel compares float32 numbers.
    least = float(torch.tensor(threshold, dtype=torch.float32))
    return UnitChoice(site, rule, least, score.norms)


def choices_of(
    model: Any,
    sites: Sequence[Site],
    recipe: Rules,
    moments: Mapping[str, Moments] | None,
    thresholds: Mapping[str, float],
    kept: Masks | None = None,
) -> dict[str, UnitChoice]:
    """What every site of a recipe keeps.

    Args:
        model: The model.
        sites: Its sites.
        recipe: Its rules.
        moments: Calibration sums that static rules choose by, where `kept` has no set.
        thresholds: Site key -> the least score that is kept.
        kept: Site key -> what a static rule keeps, (n_units,) bool.

    Raises:
        ConfigError: a rule or a threshold has no site, or the site cannot be decoded under it.
    """
    known = {site.key: site for site in sites}
    if unknown := sorted({*recipe, *thresholds} - known.keys()):
        raise ConfigError(
            f"{type(model).__name__} has no site {', '.join(unknown)}: the recipe is of another"
            f" model; sites are named as {next(iter(known), 'none')}"
        )
    if loose := sorted(set(thresholds) - set(recipe)):
        raise ConfigError(f"a threshold has no rule at its site: {', '.join(loose)}")
    sets = {kind: RankedSets(moments or {}, kind) for kind in ("ffn", "input")}
    choices = {}
    for key, rule in recipe.items():
        site, threshold = known[key], thresholds.get(key)
        if rule.site != site.kind or rule.method == "windowed":
            raise ConfigError(
                f"{key}: {describe(rule)}, of kind {rule.site}, cannot be in a recipe: its rules"
                f" are of their site's kind, here {site.kind}, and choose per token or once"
            )
        if threshold is not None and (rule.window == "corpus" or not threshold >= 0):
            raise ConfigError(
                f"{key}: threshold {threshold} under {describe(rule)}: thresholds are 0 or more,"
                " and of rules that choose per token"
            )
        fixed = None if kept is None else kept.get(key)
        if fixed is None:
            check_rule(rule, moments, None)
        if rule.sparsity or threshold is not None:
            if rule.window == "corpus" and fixed is None:
                fixed = _fixed(key, rule, sets[site.kind])
            choices[key] = choice_of(site, rule, threshold, fixed)
    return choices


def _fixed(key: str, rule: Rule, sets: RankedSets) -> Tensor:
    try:
        return sets[rule][key]
    except KeyError:
        raise ConfigError(
            f"{key}: {describe(rule)} chooses on calibration text, and the activation cache has no"
            " sums of this site; make it with all kinds of sites that the recipe names"
        ) from None


def check_rule(
    rule: Rule | None, moments: Mapping[str, Moments] | None, given: Mapping[str, Tensor] | None
) -> None:
    """Refuse a rule that cannot be decoded under.

    Args:
        rule: The rule; None is dense.
        moments: Calibration sums, for static rules.
        given: Sets that are known beforehand, as in `keepset.decode.sparse_decoding`.

    Raises:
        ConfigError: it cannot, or a static rule has no moments; the message says why.
    """
    if rule is None:
        return
    name = describe(rule)
    if rule.site not in ("ffn", "input"):
        raise ConfigError(
            f"{name}: only rules on FFN neurons (site ffn) and on inputs of linear maps (site"
            " input) can be decoded under"
        )
    if rule.window == "corpus":
        if not moments:
            raise ConfigError(
                "a static rule chooses on calibration text: give the activation cache of the model"
            )
        return
    if rule.score not in SCORES:
        raise ConfigError(
            f"{name}: score {rule.score} cannot choose while decoding; use {' or '.join(SCORES)}"
        )
    if rule.window == "sequence":
        raise ConfigError(f"{name}: a window has a number of tokens while the sequence still grows")
    if rule.choice == "oracle" and rule.window != 1 and given is None:
        raise ConfigError(
            f"{name}: an oracle window is chosen on tokens that are yet to come; use choice causal"
        )
