"""A recipe: a rule for every site of a model. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keepset.errors import ConfigError
from keepset.rules.kinds import KINDS
from keepset.rules.rule import Rule

Kept = Sequence[int] | Sequence[Sequence[int]]
"""The units that a static rule keeps: their indices, or those of every group of a state."""


@dataclass(frozen=True)
class Recipe:
    """What is left out of each site of a model, chosen how, and for how long.

    Sites without a rule run dense.

    Attributes:
        rules: Site key -> its rule: dynamic (window 1, oracle) or static.
        thresholds: Site key -> the least score that is kept there, in the place of the share that
            a dynamic rule keeps. The share that is left out then differs from token to token.
        centres: Site key -> what units that are left out take in the place of zero, where the score
            of a dynamic rule is centred.
        kept: Site key -> the units that a static rule keeps.
        model: What the recipe belongs to: name, model_type, and weights, the digest of
            `keepset.models.weights_digest`.
        cut: The digest of the weights after what static rules leave out was cut; None where
            nothing was.
        bos: The token that stands before every text; None: none does.
        found: How the recipe was found, and what was measured: for readers.

    Raises:
        ConfigError: a rule that a recipe cannot hold, a score that is none of its kind of site, a
            static rule without kept units, or a threshold without a dynamic rule, or a centre
            without a centred score, or none with one.

    Example:
        >>> from keepset import Recipe, Rule
        >>> rule = Rule("magnitude", 0.25, 1, site="input")
        >>> Recipe({"input.000.q_proj": rule}).describe()
        'recipe of 1 site (input 1)'
    """

    rules: Mapping[str, Rule]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    cut: str | None = None
    bos: int | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    centres: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, rule in self.rules.items():
            _need_holdable(key, rule)
            if rule.method == "static" and key not in self.kept:
                raise ConfigError(f"{key}: a static rule needs the units that are kept")
        for key in self.kept:
            if key not in self.rules or self.rules[key].method != "static":
                raise ConfigError(f"{key}: units are kept where no static rule is")
        for key, least in self.thresholds.items():
            if key not in self.rules or self.rules[key].method != "dynamic":
                raise ConfigError(f"{key}: a threshold stands where no dynamic rule is")
            if not 0 <= least < math.inf:
                raise ConfigError(f"{key}: a threshold is a number from 0, got {least}")
        for key in {*self.rules, *self.centres}:
            centred = key in self.rules and _is_centred(self.rules[key])
            if centred and not math.isfinite(self.centres.get(key, math.nan)):
                raise ConfigError(f"{key}: score {self.rules[key].score} needs a centre, a number")
            if not centred and key in self.centres:
                raise ConfigError(f"{key}: a centre stands where no score is centred")

    def describe(self) -> str:
        """The recipe in a few words."""
        counts: dict[str, int] = {}
        for rule in self.rules.values():
            counts[rule.site] = counts.get(rule.site, 0) + 1
        n = len(self.rules)
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        return f"recipe of {n} site{'s' * (n != 1)} ({kinds or 'dense'})"

    def of_method(self, method: str) -> dict[str, Rule]:
        """Its rules that are `dynamic`, or `static`."""
        return {key: rule for key, rule in self.rules.items() if rule.method == method}

    def groups(self) -> dict[Rule, list[str]]:
        """Rule -> the keys of the sites that it holds on, each as they come."""
        groups: dict[Rule, list[str]] = {}
        for key, rule in self.rules.items():
            groups.setdefault(rule, []).append(key)
        return groups


def _need_holdable(key: str, rule: Rule) -> None:
    """Refuse a rule that no recipe can hold at the site `key`."""
    if rule.site != key.partition(".")[0]:
        raise ConfigError(f"{key}: a rule on sites of kind {rule.site} cannot hold there")
    if rule.site not in KINDS:
        raise ConfigError(f"{key}: {rule.site} is no kind of site; use one of {', '.join(KINDS)}")
    if rule.score not in (known := KINDS[rule.site].scores):
        raise ConfigError(
            f"{key}: score {rule.score!r} is none of {rule.site}; use one of {', '.join(known)}"
        )
    if rule.method == "windowed":
        raise ConfigError(f"{key}: a recipe holds dynamic and static rules, not windowed")


def _is_centred(rule: Rule) -> bool:
    score = KINDS[rule.site].scores.get(rule.score)
    return score is not None and score.centred and rule.method == "dynamic"
