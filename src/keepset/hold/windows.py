"""What windowed and dynamic rules share, whatever they hold: seeds, padding, the window before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from keepset.errors import ConfigError, ModelError
from keepset.kernels.selection import Selection
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import site_seed
from keepset.sites import AnySite


def not_finite(name: str, label: str) -> ModelError:
    """The error of activations at the module `name` that are NaN or infinite under a rule."""
    return ModelError(
        f"NaN or infinity in the activations of {name} under {label}; try dtype: float32"
    )


class Windowed:
    """Base of the actions of windowed and dynamic rules.

    Windows are cut over the tokens of the text, row by row; a BOS token stands outside of them.
    With the choice `causal` a window is held under the set chosen on the window before. Before a
    row's first window stands `before`. Where that is not known, as in separate passages, the first
    window's set is chosen on the first token of the text alone, and this token runs dense.
    """

    valid: Tensor | None = None
    """(batch, text tokens) bool, False at padding; None where nothing is padded."""
    before: Mapping[str, Tensor] | None = None
    """Site key -> (batch, ...) mean scores over the last window of the text before each row."""

    def __init__(
        self, rule: Rule, *, bos: bool = False, selection: Selection | None = None
    ) -> None:
        """Prepare the rule.

        Args:
            rule: The rule.
            bos: Whether rows start with a BOS token.
            selection: Which kernels may run; plain torch if left out.

        Raises:
            ConfigError: the rule is static.
        """
        if rule.window == "corpus":
            raise ConfigError("a rule with window: corpus is static, and holds one keep set")
        self.rule = rule
        self.selection = selection
        self._n_bos = int(bos)
        self._generators: dict[str, torch.Generator] = {}

    @property
    def _opens_unchosen(self) -> bool:
        """Whether nothing is known before a row's first token of text."""
        return self.rule.choice == "causal" and self.before is None

    def _generator(self, site: AnySite, device: torch.device) -> torch.Generator:
        """The site's own random numbers, for seeded scores."""
        if site.key not in self._generators:
            seed = site_seed(self.rule.seed, site.key)
            self._generators[site.key] = torch.Generator(device).manual_seed(seed)
        return self._generators[site.key]

    def _best(
        self, site: AnySite, scores: Tensor, kept: int, *, zeros_matter: bool = True
    ) -> Tensor:
        """`top_mask` of scores at a site.

        Raises:
            ModelError: a score is NaN; the message names the site.
        """
        try:
            return top_mask(scores, kept, zeros_matter=zeros_matter)
        except ModelError:
            raise not_finite(site.name, describe(self.rule)) from None

    def _opening(self, site: AnySite, first: Tensor) -> Tensor:
        """What a causal rule chooses each row's first window by: (batch, ...) scores.

        `first` are the scores of the rows' first tokens of text.
        """
        return first if self.before is None else self.before[site.key].to(first)
