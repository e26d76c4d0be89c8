"""The kinds of sites, as data: what settings, plan, workflow and tables need to know of each.

What a kind *does* (find its sites, hold a rule on them, choose its keep sets, cut) is the module
that `Kind.module` names; it implements `keepset.kinds.SiteKind`. Adding a kind is that module and
one call of `register`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from keepset.rules.scores import CHANNEL_SCORES, NEURON_SCORES, Score

Part = Literal["static", "dynamic", "windowed"]


@dataclass(frozen=True)
class Evaluation:
    """One rule of the workflow that measures one part of a kind's grid.

    Attributes:
        rule: The workflow's name of it.
        part: The part of the grid: static, dynamic, or windowed (one job per choice).
        table: The table that it writes, without folder and ending; {choice} is filled in.
    """

    rule: str
    part: Part
    table: str


@dataclass(frozen=True)
class Kind:
    """A kind of site.

    Attributes:
        name: As in `Rule.site`, the key `sites` of a model, and the column `site`.
        units: What its units are called, for readers.
        module: The Python module that implements `keepset.kinds.SiteKind`.
        scores: Its scores, by name.
        access: What a unit that is left out can lose under windowed rules; ("none",) where there
            is nothing to choose.
        static_access: The same under static rules.
        section: The key of the configuration that its grid stands in.
        sets: The file, in a model's folder of a corpus, that its static keep sets come from.
        correlation: The table of size against impact, without folder and ending.
        sizes: The columns of a table of its units that say how large a unit is.
        impacts: What stands for a unit's impact -> the column that holds it.
        evaluations: What measures its grid. A kind without a part `dynamic` has W = 1 among its
            windows.
    """

    name: str
    units: str
    module: str
    scores: Mapping[str, Score]
    access: tuple[str, ...] = ("none",)
    static_access: str = "none"
    section: str = "grid"
    sets: str = "activations.safetensors"
    correlation: str = "correlation"
    sizes: tuple[str, ...] = ("magnitude",)
    impacts: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in ("weight", "output", "taylor")}
    )
    evaluations: tuple[Evaluation, ...] = field(default=())


KINDS: dict[str, Kind] = {}
"""Name -> kind, in the order in which they are evaluated."""


def register(kind: Kind) -> Kind:
    """Enter a kind of site."""
    KINDS[kind.name] = kind
    return kind


def is_seeded(score: str) -> bool:
    """Whether a score of this name, of any kind of site, depends on a seed."""
    return any(kind.scores[score].seeded for kind in KINDS.values() if score in kind.scores)


register(
    Kind(
        name="ffn",
        units="neurons",
        module="keepset.kinds.ffn",
        scores=NEURON_SCORES,
        evaluations=(
            Evaluation("evaluate_static", "static", "static"),
            Evaluation("evaluate_dynamic", "dynamic", "dynamic"),
            Evaluation("evaluate_windowed", "windowed", "windowed-{choice}"),
        ),
    )
)

register(
    Kind(
        name="state",
        units="state channels",
        module="keepset.kinds.state",
        scores=CHANNEL_SCORES,
        access=("read", "write"),
        static_access="both",
        section="state",
        sets="state.safetensors",
        correlation="correlation-state",
        sizes=("magnitude", "controllability"),
        impacts={"ghost": "energy", "observability": "observability", "taylor": "taylor"},
        evaluations=(
            Evaluation("evaluate_state", "static", "state-static"),
            Evaluation("evaluate_state_windowed", "windowed", "state-windowed-{choice}"),
        ),
    )
)
