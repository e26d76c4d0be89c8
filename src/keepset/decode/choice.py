"""What the tokens of one site keep while a model decodes under a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keepset.calibrate.sets import RankedSets
from keepset.decode.position import Position
from keepset.decode.score import SCORES, UnitScore
from keepset.errors import ConfigError, ModelError
from keepset.hold.windows import not_finite
from keepset.rules.masks import Masks, top_mask
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import NEURON_SCORES, Moments, token_score
from keepset.sites.ffn import Site

_KINDS = ("ffn", "input")
"""The kinds of sites whose units are inputs of linear maps."""


@dataclass(frozen=True, eq=False)
class UnitChoice:
    """How each token of a site chooses its units.

    Attributes:
        site: The site.
        rule: Its rule.
        least: How many units are kept, an int; or the least score that is kept, a float.
        norms: What |h_j| is multiplied by to score it, (n_units,) float32; None: by nothing.
        fixed: The units that every token keeps, (n_units,) bool; None where tokens choose.
        centre: What units that are left out take, where the score is centred; None: zero.
    """

    site: Site
    rule: Rule
    least: int | float
    norms: Tensor | None
    fixed: Tensor | None = None
    centre: float | None = None

    @property
    def reads_gate(self) -> bool:
        """Whether the gates are scored in the place of h."""
        return self.fixed is None and NEURON_SCORES[self.rule.score].reads_gate

    def mask(self, h: Tensor) -> Tensor:
        """Which units tokens keep, as bool; units with h = 0 may be either.

        Args:
            h: The units (..., n_units), or their gates where these are scored.

        Raises:
            ModelError: a score is NaN; the message names the site.
        """
        if self.fixed is not None:
            return self.fixed.to(h.device)
        if self.centre is not None:
            h = h - self.centre
        scores = token_score(self.rule.score, h, self.norms, None)
        if isinstance(self.least, float):
            if bool(scores.isnan().any()):
                raise self.not_finite()
            return scores >= self.least
        try:
            return top_mask(scores, self.least, zeros_matter=self.reads_gate)
        except ModelError:
            raise self.not_finite() from None

    def held(self, h: Tensor, mask: Tensor) -> Tensor:
        """h (..., n_units) where the mask is, else zero, or the centre."""
        return h * mask if self.centre is None else torch.where(mask, h, h.new_tensor(self.centre))

    def not_finite(self) -> ModelError:
        """The error of a score that is NaN."""
        return not_finite(self.site.name, describe(self.rule))

    def hold(self, h: Tensor, position: Position, gates: Tensor | None = None) -> Tensor:
        """Zero, or centre, what tokens h (..., n_units) of the running pass do not keep.

        The first token of a context runs dense. `gates`, where they are scored, are as h.
        """
        if position.opens and position.tokens == 1:
            return h
        rows = h.reshape(position.batch, position.tokens, self.site.n_units)
        held = self.held(rows, self.mask(rows if gates is None else gates.view(rows.shape)))
        if position.opens:
            held[:, 0] = rows[:, 0]
        return held.view(h.shape)


def choice_of(
    site: Site,
    rule: Rule,
    threshold: float | None = None,
    fixed: Tensor | None = None,
    centre: float | None = None,
) -> UnitChoice:
    """What a rule keeps at a site.

    Args:
        site: The site.
        rule: A dynamic rule, or a static one.
        threshold: The least score that is kept, in the place of the rule's share.
        fixed: The units that a static rule keeps, (n_units,) bool.
        centre: The site's centre, where the score is centred.
    """
    if fixed is not None:
        # To the kernel a unit that is left out has the norm 0; those of score 0 add nothing.
        return UnitChoice(site, rule, 0.0, fixed.float(), fixed)
    score = UnitScore(site, rule)
    if threshold is None:
        return UnitChoice(site, rule, score.k, score.norms, centre=centre)
    # The kernel compares float32 numbers.
    least = float(torch.tensor(threshold, dtype=torch.float32))
    return UnitChoice(site, rule, least, score.norms, centre=centre)


def choices_of(sites: Sequence[Site], recipe: Recipe, masks: Masks) -> dict[str, UnitChoice]:
    """What those of `sites` keep that a recipe names, by their keys.

    Args:
        sites: The sites of a model's linear maps.
        recipe: The recipe.
        masks: What its static rules keep (`keepset.kinds.recipes.kept_masks`).

    Raises:
        ConfigError: one of its rules cannot be decoded under; the message names its site.
    """
    choices = {}
    for site in sites:
        key, rule = site.key, recipe.rules.get(site.key)
        if rule is None:
            continue
        score = NEURON_SCORES.get(rule.score)
        if rule.method == "dynamic" and (score is None or score.token is None or score.seeded):
            raise ConfigError(f"{key}: score {rule.score} cannot choose while decoding")
        if rule.sparsity or key in recipe.thresholds:
            choices[key] = choice_of(
                site, rule, recipe.thresholds.get(key), masks.get(key), recipe.centres.get(key)
            )
    return choices


def recipe_of(
    rule: Rule, sites: Sequence[Site], moments: Mapping[str, Moments] | None, bos: int | None
) -> Recipe:
    """One rule at all of `sites` that are of its kind.

    Args:
        rule: A dynamic rule, or a static one.
        sites: Sites of any kinds.
        moments: Calibration sums, for static rules.
        bos: The token that stands before every text, if there is one.

    Raises:
        ConfigError: the rule cannot be decoded under, or is windowed.
    """
    check_rule(rule, moments, None)
    keys = [site.key for site in sites if site.kind == rule.site]
    kept = {}
    if rule.method == "static":
        masks = RankedSets(moments or {}, rule.site)[rule]
        kept = {key: masks[key].nonzero()[:, 0].tolist() for key in keys}
    return Recipe(dict.fromkeys(keys, rule), kept=kept, bos=bos)


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
    if rule.site not in _KINDS:
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
