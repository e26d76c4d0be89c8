"""What windowed and dynamic rules share, whatever they hold: padding, seeds, the window before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from keepset.errors import ConfigError
from keepset.rules.rule import Rule
from keepset.rules.scores import site_seed
from keepset.sites import AnySite


class Windowed:
    """Base of the actions of windowed and dynamic rules.

    With the choice `causal` a window is held under the set chosen on the window before. In a stream
    (rows of consecutive text) the window before a row's first is the last of the row above, across
    batches too, and for the very first row the end of the lead-in. In separate passages the first
    window has nothing to choose from and is run dense.
    """

    valid: Tensor | None = None
    """(batch, tokens) bool, False at padding; None where nothing is padded."""

    def __init__(
        self, rule: Rule, *, lead_in: Mapping[str, Tensor] | None = None, stream: bool = True
    ) -> None:
        """Prepare the rule.

        Args:
            rule: A rule whose window is not "corpus".
            lead_in: Site key -> mean score per unit over the last window of the text before, for
                `causal` in a stream.
            stream: Whether rows are consecutive text.

        Raises:
            ConfigError: the rule is static.
        """
        if rule.window == "corpus":
            raise ConfigError("a rule with window: corpus is static, and holds one keep set")
        self.rule = rule
        self._stream = stream
        self._last = dict(lead_in or {})
        self._generators: dict[str, torch.Generator] = {}

    def _generator(self, site: AnySite, device: torch.device) -> torch.Generator:
        """The site's own random numbers, for seeded scores."""
        if site.key not in self._generators:
            seed = site_seed(self.rule.seed, site.key)
            self._generators[site.key] = torch.Generator(device).manual_seed(seed)
        return self._generators[site.key]

    def _before(self, site: AnySite, scores: Tensor) -> Tensor:
        """Each row's scores -> those of the row above it, across batches: (rows, ...) float32.

        Raises:
            ConfigError: nothing is known of what comes before the first row.
        """
        if site.key not in self._last:
            raise ConfigError("a causal rule on a stream needs the scores of its lead-in")
        before = torch.cat([self._last[site.key].to(scores)[None], scores[:-1]])
        self._last[site.key] = scores[-1].clone()
        return before
