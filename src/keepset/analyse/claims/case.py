"""A claim, and the cases that speak for or against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from keepset.analyse.bounds import Bounds, Effect
from keepset.analyse.claims.evidence import Evidence

Scale = Literal["ratio", "difference", "correlation", "share"]
Scope = Literal["value", "direction"]

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested here"
VERDICTS = (REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)

STUDY = "Two ways to slim a model"
GHOST = "GHOST (arXiv:2602.11408)"
TWELL = "Sparser, Faster, Lighter (arXiv:2603.23198)"
OURS = "keepset"
FAMILIES = {STUDY: "two ways", GHOST: "ghost", TWELL: "twell", OURS: "keepset"}
"""Source -> the claims whose p-values are adjusted together."""


@dataclass(frozen=True)
class Case:
    """One model on one text or task: what was measured, and where the claim says it lies.

    Attributes:
        model: The model.
        origin: pretrained or specimen.
        site: ffn or state.
        where: The corpus or task.
        compared: The settings, in words.
        scale: ratio (effect and bounds are logs), difference, correlation or share.
        effect: What was measured.
        bounds: Where the claim says that the effect lies.
    """

    model: str
    origin: str
    site: str
    where: str
    compared: str
    scale: Scale
    effect: Effect
    bounds: Bounds

    @property
    def scope(self) -> Scope:
        """A specimen speaks about a direction only: its numbers are not a large model's."""
        return "direction" if self.origin == "specimen" else "value"

    def shown(self, value: float) -> float:
        """An effect or bound on the scale that readers see."""
        return math.exp(value) if self.scale == "ratio" else value


class NoEvidence(str):
    """A sentence about a model that a claim leaves out, since it could not speak against it."""


Findings = Iterator[Case | str]
"""What a rule yields: cases, and sentences that say what is missing or left out."""


@dataclass(frozen=True)
class Claim:
    """A claim as data.

    Attributes:
        id: C1..C16 of the papers, D1..D8, E1..E3, F1 and F2 of this project.
        title: A few words, for figures.
        sentence: The claim, in our words.
        source: The paper.
        paper: Its value, filled from papers.csv.
        test: What is compared with which bound, by which test, and what is tested in a specimen.
        needs: What the value asks for.
        rule: Turns tables into cases.
    """

    id: str
    title: str
    sentence: str
    source: str
    paper: str
    test: str
    needs: str
    rule: Callable[[Evidence], Findings]

    @property
    def family(self) -> str:
        """The claims whose p-values are adjusted together: those of one source."""
        return FAMILIES[self.source]
