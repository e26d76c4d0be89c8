"""The score of a keep rule at one site, while a model decodes."""

from __future__ import annotations

from torch import Tensor

from keepset.hold.inputs import output_norms
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import NEURON_SCORES, decoding_names, token_score
from keepset.sites.ffn import Site

SCORES = decoding_names(NEURON_SCORES)
"""Scores that choose per token or window while decoding."""


class UnitScore:
    """Scores the units of a site at every token; `k` is how many of them the rule keeps."""

    def __init__(self, site: Site, rule: Rule) -> None:
        """`rule`: its score is one of `SCORES`."""
        self.k = n_kept(site.n_units, rule.sparsity)
        self.norms = output_norms(site) if NEURON_SCORES[rule.score].needs_norms else None
        self._name = rule.score

    def __call__(self, h: Tensor) -> Tensor:
        """h (..., n_units) -> scores (..., n_units), float32."""
        return token_score(self._name, h, self.norms, None)
