"""What the tokens of one site keep while a model decodes under a recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.errors import ModelError
from keepset.hold.windows import not_finite
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import token_score
from keepset.sites.ffn import Site


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
                raise not_finite(self.site.name, describe(self.rule))
            return scores >= self.least
        try:
            return top_mask(scores, self.least, zeros_matter=False)
        except ModelError:
            raise not_finite(self.site.name, describe(self.rule)) from None

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
