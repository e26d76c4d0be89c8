"""A keep rule: which units are kept, how they are chosen, and for how long. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, get_args

from keepset.errors import ConfigError
from keepset.rules.kinds import KINDS, is_seeded

Window = int | Literal["sequence", "corpus"]
Choice = Literal["oracle", "causal"]


def n_kept(n_units: int, sparsity: float) -> int:
    """How many of `n_units` stay: n - floor(sparsity * n), in exact decimal arithmetic.

    Raises:
        ConfigError: sparsity outside [0, 1), or no units.
    """
    if n_units < 1:
        raise ConfigError(f"a site has at least one unit, got {n_units}")
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity must be in [0, 1), got {sparsity}")
    # 0.29 * 100 is 28.999... in floating point; the decimal that the user wrote is what counts.
    return n_units - math.floor(Fraction(str(float(sparsity))) * n_units)


@dataclass(frozen=True)
class Rule:
    """One point of the grid: how units are chosen, how many go, and for how long it holds.

    `site` is the name of a kind of site (`keepset.rules.kinds`). `access` says what a unit that is
    left out loses, where there is a choice, as for state channels. `both`: it is gone. `read`: the
    state keeps it, but it is not read. `write`: it is forgotten.

    Raises:
        ConfigError: sparsity outside [0, 1); a window that is neither a positive number of tokens
            nor "sequence" nor "corpus"; or an unknown choice or access.

    Example:
        >>> from keepset import Rule
        >>> [Rule("magnitude", 0.9, window).method for window in (1, 16, "corpus")]
        ['dynamic', 'windowed', 'static']
    """

    score: str
    sparsity: float
    window: Window
    choice: Choice = "oracle"
    seed: int = 0
    site: str = "ffn"
    access: str = "none"

    def __post_init__(self) -> None:
        n_kept(1, self.sparsity)
        is_word = self.window in ("sequence", "corpus")
        is_count = isinstance(self.window, int) and not isinstance(self.window, bool)
        if not is_word and not (is_count and int(self.window) >= 1):
            raise ConfigError(
                f"window must be a positive number of tokens, 'sequence' or 'corpus',"
                f" got {self.window!r}"
            )
        if self.choice not in get_args(Choice):
            raise ConfigError(f"choice must be oracle or causal, got {self.choice!r}")
        # A kind of site may be registered after its first rule is made.
        access = KINDS[self.site].access if self.site in KINDS else (self.access,)
        if self.access not in (known := dict.fromkeys(("none", "both", *access))):
            raise ConfigError(
                f"access to {self.site} must be one of {', '.join(known)}, got {self.access!r}"
            )

    @property
    def method(self) -> str:
        """`static`, `dynamic` or `windowed`: three places on one dial."""
        if self.window == "corpus":
            return "static"
        return "dynamic" if self.window == 1 and self.choice == "oracle" else "windowed"

    @property
    def columns(self) -> dict[str, object]:
        """The rule as columns of a result table."""
        return {
            "method": self.method,
            "score": self.score,
            "seed": self.seed,
            "sparsity": self.sparsity,
            "window": str(self.window),
            "choice": "none" if self.window == "corpus" else self.choice,
            "access": self.access,
        }


class Described(Protocol):
    """What says of itself what it is, as a recipe does."""

    def describe(self) -> str:
        """It in a few words."""


def describe(rule: Rule | Described | None) -> str:
    """A rule, or a recipe, in words.

    Example:
        >>> from keepset import Rule, describe
        >>> describe(Rule("magnitude", 0.9, 8, "causal"))
        'windowed magnitude 0.9 W=8 causal'
        >>> describe(None)
        'dense'
    """
    if rule is None:
        return "dense"
    if not isinstance(rule, Rule):
        return rule.describe()
    text = f"{rule.method} {rule.score} {rule.sparsity:g}"
    if rule.access != "none":
        text = f"{rule.site} {rule.access} {text}"
    if rule.method == "windowed":
        text += f" W={rule.window} {rule.choice}"
    return f"{text} seed {rule.seed}" if is_seeded(rule.score) else text
