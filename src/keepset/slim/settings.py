"""What `keepset slim` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from keepset.errors import ConfigError
from keepset.slim.savings import Save


@dataclass(frozen=True)
class Budget:
    """The loss that is allowed, and how sure it must be that no more is lost.

    Attributes:
        perplexity: Relative rise of token perplexity, e.g. 0.03; None: any.
        points: Points of accuracy in the task that may be lost, e.g. 2.0; None: there is no task.
        confidence: Of the one-sided bounds that must lie within.
        save: What is to be saved.

    Raises:
        ConfigError: nothing is limited, or a number makes no sense.
    """

    perplexity: float | None = 0.03
    points: float | None = None
    confidence: float = 0.95
    save: Save = "speed"

    def __post_init__(self) -> None:
        if self.perplexity is None and self.points is None:
            raise ConfigError("give --budget, a rise of perplexity, or --task with --points")
        if self.perplexity is not None and not 0 < self.perplexity <= 10:
            raise ConfigError(
                f"--budget: a rise of perplexity above 0, such as 3% or 0.03, got {self.perplexity}"
            )
        if self.points is not None and not 0 < self.points <= 100:
            raise ConfigError(f"--points: points of accuracy above 0, got {self.points}")
        if not 0.5 < self.confidence < 1:
            raise ConfigError(f"--confidence: between 0.5 and 1, got {self.confidence}")

    def words(self) -> str:
        """The budget in words."""
        parts = []
        if self.perplexity is not None:
            parts.append(f"perplexity at most {100 * self.perplexity:g}% above dense")
        if self.points is not None:
            parts.append(f"accuracy at most {self.points:g} points below dense")
        return " and ".join(parts)


def parse_share(text: str) -> float:
    """3% or 0.03 as a number.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"--budget {text!r}: write a share, such as 3% or 0.03") from None
