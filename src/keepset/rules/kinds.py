"""The kinds of sites, as data: what settings, plan, workflow and tables need to know of each.

What a kind *does* (find its sites, hold a rule on them, choose its keep sets, cut) is the module
that `Kind.module` names; it implements `keepset.kinds.SiteKind`. Adding a kind is that module and
one call of `register`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from keepset.rules.scores import (
    CHANNEL_SCORES,
    EXPERT_SCORES,
    INPUT_SCORES,
    NEURON_SCORES,
    Score,
)

Part = Literal["static", "dynamic", "windowed"]
CACHE = "activations.safetensors"
"""The activation cache: the sums of inputs of linear maps over calibration text."""


@dataclass(frozen=True)
class Evaluation:
    """One rule of the workflow that measures one part of a kind's grid."""

    rule: str  # its name in the workflow
    part: Part  # static, dynamic, or windowed (one job per choice)
    table: str  # what it writes, without folder and ending; {choice} is filled in
    title: str  # what is evaluated, for readers; {model} and {choice} are filled in

    @property
    def rounding(self) -> str | None:
        """The table of dynamic rules with noise, without folder and ending; None for others."""
        return self.table.replace("dynamic", "rounding") if self.part == "dynamic" else None


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
        section: The key of the configuration that holds its grid.
        sets: The file, in a model's folder of a corpus, that its static keep sets come from.
        correlation: The table of size against impact, without folder and ending; None where there
            is none.
        sizes: The columns of a table of its units that say how large a unit is.
        impacts: What stands for a unit's impact -> the column that holds it.
        evaluations: What measures its grid. A kind without a part `dynamic` has W = 1 among its
            windows.
        before: The other rules that run once for each of its models and corpora, and
        after: those of them that `keepset plan` lists below its grid.
        masks: Whether units are scored and masked at every token, of all but static rules.
        steps: How often a rule runs a recurrence token by token, of (access, choice) of all but
            static rules (`keepset.plan`).
    """

    name: str
    units: str
    module: str
    scores: Mapping[str, Score]
    access: tuple[str, ...] = ("none",)
    static_access: str = "none"
    section: str = "grid"
    sets: str = CACHE
    correlation: str | None = None
    sizes: tuple[str, ...] = ("magnitude",)
    impacts: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in ("weight", "output", "taylor")}
    )
    evaluations: tuple[Evaluation, ...] = ()
    before: tuple[str, ...] = ("cache_activations",)
    after: tuple[str, ...] = ()
    masks: bool = True
    steps: Callable[[str, str], int] = lambda *_: 0


KINDS: dict[str, Kind] = {}
"""Name -> kind, in the order in which they are evaluated."""


def register(kind: Kind) -> Kind:
    """Enter a kind of site."""
    KINDS[kind.name] = kind
    return kind


def evaluations() -> Iterator[tuple[Kind, Evaluation]]:
    """What measures the grids of all kinds."""
    for kind in KINDS.values():
        yield from ((kind, evaluation) for evaluation in kind.evaluations)


def is_seeded(score: str) -> bool:
    """Whether a score of this name, of any kind of site, depends on a seed."""
    return any(kind.scores[score].seeded for kind in KINDS.values() if score in kind.scores)


register(
    Kind(
        name="ffn",
        units="neurons",
        module="keepset.kinds.ffn",
        scores=NEURON_SCORES,
        correlation="correlation",
        before=("cache_activations", "correlate_size_impact"),
        evaluations=(
            Evaluation("evaluate_static", "static", "static", "{model} static"),
            Evaluation("evaluate_dynamic", "dynamic", "dynamic", "{model} dynamic"),
            Evaluation(
                "evaluate_windowed", "windowed", "windowed-{choice}", "{model} windowed ({choice})"
            ),
        ),
    )
)

register(
    Kind(
        name="input",
        units="inputs of linear maps",
        module="keepset.kinds.input",
        scores=INPUT_SCORES,
        section="input",
        impacts={},
        evaluations=(
            Evaluation(
                "evaluate_inputs", "static", "input-static", "the inputs of {model}, static"
            ),
            Evaluation(
                "evaluate_inputs_dynamic",
                "dynamic",
                "input-dynamic",
                "the inputs of {model}, dynamic",
            ),
            Evaluation(
                "evaluate_inputs_windowed",
                "windowed",
                "input-windowed-{choice}",
                "the windowed inputs ({choice}) of {model}",
            ),
        ),
    )
)

register(
    Kind(
        name="expert",
        units="routed experts",
        module="keepset.kinds.expert",
        scores=EXPERT_SCORES,
        section="expert",
        sets="experts.safetensors",
        impacts={},
        before=("score_experts",),
        masks=False,
        evaluations=(
            Evaluation("evaluate_experts", "static", "expert-static", "the experts of {model}"),
            Evaluation(
                "evaluate_experts_windowed",
                "windowed",
                "expert-windowed-{choice}",
                "the windowed experts ({choice}) of {model}",
            ),
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
        before=("score_state",),
        after=("evaluate_state_lengths", "correlate_state"),
        masks=False,
        # A state that forgets is run beside one that does not.
        steps=lambda access, _: 1 if access == "read" else 2,
        evaluations=(
            Evaluation("evaluate_state", "static", "state-static", "the pruned state of {model}"),
            Evaluation(
                "evaluate_state_windowed",
                "windowed",
                "state-windowed-{choice}",
                "the windowed state ({choice}) of {model}",
            ),
        ),
    )
)
