"""What is measured: the grids of rules, and the settings that tasks are run under."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from keepset.settings.base import (
    Access,
    Choice,
    DialWindow,
    ExpertScoreName,
    ExpertTokenScoreName,
    InputScoreName,
    InputTokenScoreName,
    Name,
    ScoreName,
    Sparsity,
    StateScoreName,
    StateTokenScoreName,
    Strict,
    TokenScoreName,
    unique,
)

Allotment = Literal["equal", "loss", "layer"]
Level = Annotated[float, Field(gt=0.0, lt=0.95)]
Rise = Annotated[float, Field(gt=0.0, le=10.0)]


class Dial(Strict):
    """The windows between dynamic and static, and the settings they are run at."""

    scores: Annotated[list[TokenScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)
    windows: Annotated[list[DialWindow], AfterValidator(unique)] = Field(min_length=1)
    choices: Annotated[list[Choice], AfterValidator(unique)] = Field(min_length=1)


class StaticGrid(Strict):
    """Keep sets chosen once, on calibration text."""

    scores: Annotated[list[ScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)


class DynamicGrid(Strict):
    """Keep sets chosen again at every token."""

    scores: Annotated[list[TokenScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)


class Grid(Strict):
    """What is measured: site x score x sparsity x window."""

    static: StaticGrid
    dynamic: DynamicGrid
    windowed: Dial

    def covers(self, _: str) -> bool:
        """Whether it is run on a corpus: on all of them."""
        return True


class InputStaticGrid(Strict):
    """Inputs of linear maps chosen once, on calibration text."""

    scores: Annotated[list[InputScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)


class InputDynamicGrid(InputStaticGrid):
    """Inputs of linear maps chosen again at every token."""

    scores: Annotated[list[InputTokenScoreName], AfterValidator(unique)] = Field(min_length=1)


class InputDial(Dial):
    """Inputs of linear maps held for a window."""

    scores: Annotated[list[InputTokenScoreName], AfterValidator(unique)] = Field(min_length=1)


class InputGrid(Strict):
    """What is measured of the inputs of all linear maps of decoder layers but down projections."""

    static: InputStaticGrid
    dynamic: InputDynamicGrid
    windowed: InputDial
    corpora: list[Name] | None = Field(None, description="Corpora it is run on; all without.")

    def covers(self, corpus: str) -> bool:
        """Whether it is run on a corpus."""
        return self.corpora is None or corpus in self.corpora


class BudgetGrid(Strict):
    """Shares of a budget, allotted to the inputs of all linear maps in different ways."""

    allotments: Annotated[list[Allotment], AfterValidator(unique)] = Field(
        ["equal", "loss"],
        min_length=1,
        description="equal shares; by the loss that each site costs per byte; or, as TEAL does, by"
        " the error of each layer's output.",
    )
    levels: Annotated[list[Level], AfterValidator(unique)] = Field(
        min_length=1, description="Shares of the bytes of all these maps that are left out."
    )
    corpora: list[Name] | None = Field(None, description="Corpora it is run on; all without.")


class Slimming(Strict):
    """What `snakemake slim` makes of every model."""

    budgets: Annotated[list[Rise], AfterValidator(unique)] = Field(
        [0.03], min_length=1, description="Allowed rises of perplexity; a slimmer model for each."
    )
    corpus: Name = Field(description="The corpus that is searched and reported on.")
    save: Literal["speed", "memory", "size"] = "speed"
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    tokens: int = Field(48, ge=2, description="Decoded to measure speed.")
    threads: int = Field(1, ge=1, description="CPU threads.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of the models that are timed: in float32 tokens can be compared."
    )
    within: Rise = Field(
        0.1, description="Rise of perplexity up to which rules and budgets are timed beside them."
    )


class GridOverride(Strict):
    """The parts of `grid` that one corpus replaces."""

    static: StaticGrid | None = None
    dynamic: DynamicGrid | None = None
    windowed: Dial | None = None


class StateStaticGrid(Strict):
    """Channels of recurrent states chosen once, on calibration text."""

    scores: Annotated[list[StateScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)


class StateDial(Dial):
    """Channels of recurrent states held for a window, and what those left out lose."""

    scores: Annotated[list[StateTokenScoreName], AfterValidator(unique)] = Field(min_length=1)
    access: Annotated[list[Access], AfterValidator(unique)] = Field(min_length=1)


class StatePrune(Strict):
    """The smaller checkpoints that `snakemake pruned` writes."""

    score: StateScoreName = Field("ghost-uniform", description="A score of state.static.")
    sparsity: Sparsity = Field(0.5, description="A sparsity of state.static.")


class StateCapability(StateStaticGrid):
    """The static settings that tasks, and longer passages, are run under."""

    random_seeds: int | None = Field(
        None, ge=1, description="Seeds of the random score here; the study's without."
    )


class State(Strict):
    """The study of recurrent states; models without one are passed over."""

    static: StateStaticGrid
    windowed: StateDial
    capability: StateCapability = Field(description="Static settings that tasks are run under.")
    capability_window: DialWindow = Field(8, description="W of the windowed runs of tasks.")
    lengths: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(unique)] = Field(
        [1, 2, 4], min_length=1, description="Evaluation lengths, in blocks."
    )
    length_sparsities: list[Sparsity] | None = Field(
        None, description="Of capability's, those run at these lengths; all without."
    )
    corpora: list[Name] | None = Field(None, description="Corpora it is run on; all without.")
    prune: StatePrune = StatePrune()

    def covers(self, corpus: str) -> bool:
        """Whether it is run on a corpus."""
        return self.corpora is None or corpus in self.corpora

    @model_validator(mode="after")
    def _chosen(self) -> State:
        for key, wanted in (
            ("capability.scores", self.capability.scores),
            ("prune.score", [self.prune.score]),
        ):
            if missing := set(wanted) - set(self.static.scores):
                raise ValueError(f"{key}: not in static.scores: {', '.join(sorted(missing))}")
        for key, shares in (
            ("capability.sparsities", self.capability.sparsities),
            ("prune.sparsity", [self.prune.sparsity]),
        ):
            if unknown := set(shares) - set(self.static.sparsities):
                raise ValueError(f"{key}: not in static.sparsities: {sorted(unknown)}")
        if unknown := set(self.length_sparsities or ()) - set(self.capability.sparsities):
            raise ValueError(f"length_sparsities: not in capability.sparsities: {sorted(unknown)}")
        return self


class ExpertStaticGrid(Strict):
    """Routed experts chosen once, on calibration text."""

    scores: Annotated[list[ExpertScoreName], AfterValidator(unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(unique)] = Field(min_length=1)


class ExpertDial(Dial):
    """Routed experts held for a window; W = 1 is every token."""

    scores: Annotated[list[ExpertTokenScoreName], AfterValidator(unique)] = Field(min_length=1)


class ExpertPrune(Strict):
    """The checkpoints with fewer experts that `snakemake pruned` writes."""

    score: ExpertScoreName = Field("impact", description="A score of expert.static.")
    sparsity: Sparsity = Field(0.25, description="A sparsity of expert.static.")


class Expert(Strict):
    """The study of routed experts; models without them are passed over."""

    static: ExpertStaticGrid
    windowed: ExpertDial
    prune: ExpertPrune = ExpertPrune()
    corpora: list[Name] | None = Field(None, description="Corpora it is run on; all without.")

    def covers(self, corpus: str) -> bool:
        """Whether it is run on a corpus."""
        return self.corpora is None or corpus in self.corpora

    @model_validator(mode="after")
    def _chosen(self) -> Expert:
        if self.prune.score not in self.static.scores:
            raise ValueError(f"prune.score: not in static.scores: {self.prune.score}")
        if self.prune.sparsity not in self.static.sparsities:
            raise ValueError(f"prune.sparsity: not in static.sparsities: {self.prune.sparsity}")
        return self


class Capability(Strict):
    """The settings under which tasks are run."""

    score: TokenScoreName = "magnitude"
    sparsity: Sparsity = 0.9
    window: DialWindow = Field(32, description="W of the windowed runs.")
    corpus: Name = Field(description="The corpus whose calibration text chooses the static set.")
    recipes: dict[Name, list[str]] = Field(
        default_factory=dict,
        description="Model -> recipes that it does tasks under too: recipe.yaml files, or folders"
        " that hold one, such as results/<study>/<model>/<corpus>/slim-0.03. Files of one model"
        " have names of their own.",
    )
    skilled_only: bool = Field(
        False,
        description="Whether a model whose dense accuracy in a task is not clearly above"
        " statistics.accuracy_margin is run dense alone: it has too little to lose.",
    )


class Ablation(Strict):
    """The measured loss change of single-unit ablations (the 'true' impact)."""

    units: int = Field(ge=1, description="Units ablated one at a time, stratified by layer.")
    tokens: int = Field(
        ge=2,
        description="Calibration tokens each ablation is measured on; rounded up to whole groups"
        " of documents.",
    )
