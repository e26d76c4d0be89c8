"""The typed view of config.yaml, and the paths of the results.

The pydantic models below are the single source of the configuration's shape:
`workflow/schemas/config.schema.yaml` is generated from them (`keepset schema`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from keepset.errors import ConfigError

Window = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence", "corpus"]
DialWindow = Annotated[int, Field(ge=1, strict=True)] | Literal["sequence"]
Choice = Literal["oracle", "causal"]
ScoreName = Literal["magnitude", "impact", "weight", "taylor", "random"]
TokenScoreName = Literal["magnitude", "impact", "random"]
StateScoreName = Literal[
    "ghost",
    "ghost-uniform",
    "ghost-oneshot",
    "ghost-separate",
    "magnitude",
    "magnitude-uniform",
    "taylor",
    "random",
]
SiteKind = Literal["ffn", "state"]
Access = Literal["read", "write"]
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
TextFormat = Literal["auto", "text", "jsonl", "parquet", "mediawiki", "pydoc", "python"]

_HYBRIDS = ("zamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h")
RESERVED_NAMES = frozenset(
    {
        *(
            "benchmarks",
            "corpora",
            "figures",
            "kernels",
            "logs",
            "records",
            "significance",
            "tables",
        ),
        *("tasks", "training"),
    }
)


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("values must not repeat")
    return values


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _exactly_one(source: BaseModel, keys: Iterable[str]) -> None:
    given = [key for key in keys if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(keys)}; got {given or 'none'}")


class Model(_Strict):
    """Where a causal language model comes from and how it is run."""

    hub: str | None = Field(None, description="Hugging Face hub id, e.g. facebook/opt-1.3b.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub repository.")
    path: str | None = Field(None, description="Local checkpoint folder, or a .gguf file.")
    package: str | None = Field(None, description="Installed Python package that carries the file.")
    file: str | None = Field(None, description="The checkpoint inside `package` (.gguf or folder).")
    tokenizer: str | None = Field(
        None,
        description="Hub id or folder of the tokenizer, for checkpoints of mamba_ssm, which have"
        " none.",
    )
    dtype: Dtype | None = Field(None, description="Overrides the study's dtype for this model.")
    trust_remote_code: bool = Field(False, description="Run Python code shipped with the model.")
    origin: Literal["pretrained", "specimen"] = Field(
        "pretrained", description="specimen: trained by this project; figures label it so."
    )
    sites: Annotated[list[SiteKind], AfterValidator(_unique)] = Field(
        ["ffn", "state"],
        min_length=1,
        description="What is studied. A kind that the model does not have gives empty tables;"
        " leaving it out saves the jobs.",
    )

    @model_validator(mode="after")
    def _source(self) -> Model:
        _exactly_one(self, ("hub", "path", "package"))
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is for hub models only")
        return self


class TextSource(_Strict):
    """Where text comes from: a hub dataset, local files, or files inside an installed package."""

    hub: str | None = Field(None, description="Hugging Face dataset id, e.g. Salesforce/wikitext.")
    config: str | None = Field(None, description="Configuration name of the hub dataset.")
    split: str | None = Field(None, description="Split of the hub dataset.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub dataset.")
    streaming: bool = Field(False, description="Stream the hub dataset (C4, the Pile).")
    field: str = Field("text", description="Field of jsonl, parquet and hub rows with the text.")
    path: str | list[str] | None = Field(None, description="Local file(s) or glob pattern(s).")
    package: str | None = Field(None, description="Installed package, or 'stdlib' for Python's.")
    file: str | None = Field(None, description="Glob pattern inside `package`.")
    format: TextFormat = Field("auto", description="auto: by the file's ending.")
    max_documents: int | None = Field(None, ge=1, description="Read at most this many documents.")

    @model_validator(mode="after")
    def _source(self) -> TextSource:
        _exactly_one(self, ("hub", "path", "package"))
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together")
        if self.hub is not None and self.split is None:
            raise ValueError("a hub dataset needs its split")
        return self


class Dial(_Strict):
    """The windows between dynamic and static, and the settings they are run at."""

    scores: Annotated[list[TokenScoreName], AfterValidator(_unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(_unique)] = Field(min_length=1)
    windows: Annotated[list[DialWindow], AfterValidator(_unique)] = Field(min_length=1)
    choices: Annotated[list[Choice], AfterValidator(_unique)] = Field(min_length=1)


class StaticGrid(_Strict):
    """Keep sets chosen once, on calibration text."""

    scores: Annotated[list[ScoreName], AfterValidator(_unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(_unique)] = Field(min_length=1)


class DynamicGrid(_Strict):
    """Keep sets chosen again at every token."""

    scores: Annotated[list[TokenScoreName], AfterValidator(_unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(_unique)] = Field(min_length=1)


class Grid(_Strict):
    """What is measured: site x score x sparsity x window."""

    static: StaticGrid
    dynamic: DynamicGrid
    windowed: Dial


class GridOverride(_Strict):
    """The parts of `grid` that one corpus replaces."""

    static: StaticGrid | None = None
    dynamic: DynamicGrid | None = None
    windowed: Dial | None = None


class Corpus(_Strict):
    """One corpus: either `text`, split here by document, or two or three separate sources."""

    text: TextSource | None = Field(None, description="One source, split by document.")
    calibration: TextSource | None = Field(None, description="Text that keep sets are chosen on.")
    evaluation: TextSource | None = Field(None, description="Text that results are reported on.")
    heldout: TextSource | None = Field(None, description="Text that built tasks are made from.")
    grid: GridOverride = Field(GridOverride(), description="Replaces parts of the study's grid.")
    ablation: bool = Field(False, description="Measure the loss change of single-unit ablations.")

    @model_validator(mode="after")
    def _sources(self) -> Corpus:
        split = self.calibration is not None and self.evaluation is not None
        some = any(s is not None for s in (self.calibration, self.evaluation, self.heldout))
        if (self.text is not None) == some or (some and not split):
            raise ValueError("give either text, or calibration and evaluation (and heldout)")
        return self


class StateStaticGrid(_Strict):
    """Channels of recurrent states chosen once, on calibration text."""

    scores: Annotated[list[StateScoreName], AfterValidator(_unique)] = Field(min_length=1)
    sparsities: Annotated[list[Sparsity], AfterValidator(_unique)] = Field(min_length=1)


class StateDial(Dial):
    """Channels of recurrent states held for a window, and what those left out lose."""

    access: Annotated[list[Access], AfterValidator(_unique)] = Field(min_length=1)


class StatePrune(_Strict):
    """The smaller checkpoints that `snakemake pruned` writes."""

    score: StateScoreName = Field("ghost-uniform", description="A score of state.static.")
    sparsity: Sparsity = Field(0.5, description="A sparsity of state.static.")


class StateCapability(StateStaticGrid):
    """The static settings that tasks, and longer passages, are run under."""

    random_seeds: int | None = Field(
        None, ge=1, description="Seeds of the random score here; the study's without."
    )


class State(_Strict):
    """The study of recurrent states; models without one are passed over."""

    static: StateStaticGrid
    windowed: StateDial
    capability: StateCapability = Field(description="Static settings that tasks are run under.")
    capability_window: DialWindow = Field(8, description="W of the windowed runs of tasks.")
    lengths: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_unique)] = Field(
        [1, 2, 4], min_length=1, description="Evaluation lengths, in blocks."
    )
    length_sparsities: list[Sparsity] | None = Field(
        None, description="Of capability's, those run at these lengths; all without."
    )
    corpora: list[Name] | None = Field(None, description="Corpora it is run on; all without.")
    prune: StatePrune = StatePrune()

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


class Text(_Strict):
    """How text becomes blocks of tokens."""

    block: int = Field(ge=2, description="Tokens per block.")
    calibration_tokens: int = Field(ge=2, description="Calibration tokens per model and corpus.")
    evaluation_tokens: int = Field(ge=2, description="Evaluation tokens per model and corpus.")
    specimen_evaluation_tokens: int = Field(ge=2, description="The same, for specimens.")
    specimen_corpora: list[Name] | None = Field(
        None, description="Corpora that specimens are run on; all without."
    )
    batch_tokens: int = Field(1024, ge=2, description="Tokens per forward pass.")


class Task(_Strict):
    """A task: the whole last word of a text is to be predicted."""

    kind: Literal["lambada", "jsonl", "built", "recall"] = Field(
        description="lambada: a source in LAMBADA's form; jsonl: context and target; built: made"
        " from the held-out text of the corpora; recall: facts stated, then asked for."
    )
    source: TextSource | None = Field(None, description="Where lambada and jsonl items come from.")
    corpora: list[Name] | None = Field(
        None, description="built and recall: the corpora to draw from."
    )
    items: int = Field(300, ge=1, description="Items used, at most.")
    min_words: int = Field(40, ge=2, description="built: shortest passage.")
    max_words: int = Field(90, ge=2, description="built: longest passage.")
    facts: Annotated[list[Annotated[int, Field(ge=1, le=32)]], AfterValidator(_unique)] = Field(
        [1, 2, 4, 8], min_length=1, description="recall: facts stated, as many items of each."
    )
    distances: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_unique)] = Field(
        [0, 24, 48], min_length=1, description="recall: words between facts and question."
    )

    @model_validator(mode="after")
    def _shape(self) -> Task:
        made = self.kind in ("built", "recall")
        if made != (self.corpora is not None):
            raise ValueError("corpora is for kind: built and recall, and needed there")
        if made == (self.source is not None):
            raise ValueError("source is for kind: lambada and jsonl, and needed there")
        if self.min_words > self.max_words:
            raise ValueError("min_words exceeds max_words")
        return self


class Capability(_Strict):
    """The settings under which tasks are run."""

    score: TokenScoreName = "magnitude"
    sparsity: Sparsity = 0.9
    window: DialWindow = Field(32, description="W of the windowed runs.")
    corpus: Name = Field(description="The corpus whose calibration text chooses the static set.")


class Ablation(_Strict):
    """The measured loss change of single-unit ablations (the 'true' impact)."""

    units: int = Field(ge=1, description="Units ablated one at a time, stratified by layer.")
    tokens: int = Field(ge=2, description="Calibration tokens each ablation is measured on.")


class TrainingSource(TextSource):
    """Further text that specimens are trained on."""

    repeats: int = Field(1, ge=1, description="How often it is read in one epoch.")


class Recall(_Strict):
    """The recall rows of the training data (keepset.text.recall)."""

    share: float = Field(0.4, ge=0, le=1, description="Share of rows that are recall.")
    lead: float = Field(
        0.25, ge=0, le=1, description="Share of the steps over which it falls from all rows."
    )
    rounds: int = Field(2, ge=1, description="How often an episode asks for each fact.")
    facts: int = Field(8, ge=1, le=32, description="Facts per episode, at most.")
    words: int = Field(96, ge=0, description="Words between facts and questions, at most.")
    curriculum: float = Field(
        0.5, ge=0, le=1, description="Share of the steps over which facts and words grow."
    )
    answer_weight: float = Field(8.0, gt=0, description="Loss weight of an answer's tokens.")


class Specimen(_Strict):
    """One specimen: a Hugging Face architecture, untouched."""

    model_type: str = Field(description="Architecture, as in transformers: opt, mamba2, ...")
    config: dict[str, Any] = Field(description="Its configuration; the vocabulary is filled in.")
    l1: float = Field(
        0.0, ge=0, description="Penalty on the sum of |h| per token, mean over FFN sites; nats."
    )


class TrainingData(_Strict):
    """What specimens are trained on: one tokenizer and one stream of text for all."""

    corpora: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="Corpus -> how often its calibration text is read per epoch."
    )
    text: dict[Name, TrainingSource] = Field(default_factory=dict, description="Further text.")
    vocabulary: int = Field(4096, ge=300, le=65536, description="Entries of the tokenizer.")
    sequence: int = Field(256, ge=8, description="Tokens per row.")
    seed: int = Field(0, ge=0, description="Seeds weights, documents' order and episodes.")


class Training(TrainingData):
    """How specimens are trained: one schedule for all."""

    batch: int = Field(8, ge=1, description="Rows per step.")
    steps: int = Field(ge=1, description="Steps.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup: int = Field(300, ge=0, description="Steps of linear warm-up.")
    final: float = Field(0.05, ge=0, le=1, description="Last learning rate, relative to the peak.")
    weight_decay: float = Field(0.1, ge=0, description="Of matrices; vectors have none.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    recall: Recall = Recall()
    compile: bool = Field(False, description="Use torch.compile; needs a C++ compiler.")
    log_every: int = Field(50, ge=1, description="Steps between points of the loss curve.")
    checkpoint_every: int = Field(250, ge=1, description="Steps between checkpoints.")
    specimens: dict[Name, Specimen] = Field(min_length=1)


class Shape(_Strict):
    """The sizes of an FFN block."""

    d_model: int = Field(ge=1, description="Width of the model.")
    n_units: int = Field(ge=1, description="Neurons of the block.")
    gated: bool = Field(False, description="Whether it has a gate beside the up projection.")


class Benchmark(_Strict):
    """What is timed, on `snakemake --cores 1 benchmarks` only."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = Field(1, ge=1, description="CPU threads.")
    shapes: dict[Name, Shape] = Field(default_factory=dict, description="Blocks, random weights.")
    blocks: dict[Annotated[int, Field(ge=1)], list[Sparsity]] = Field(
        default_factory=dict, description="Tokens at a time -> sparsities at which they are timed."
    )
    seconds: float = Field(0.5, ge=0, description="Per comparison; at least nine rounds are run.")
    corpus: Name = Field(description="The corpus of the prompt and of the static sets.")
    score: Literal["magnitude", "impact"] = "magnitude"
    sparsities: list[Sparsity] = Field(min_length=1, description="Of dynamic and static decoding.")
    sparsity: Sparsity = Field(0.9, description="Of windowed decoding: the frontier's.")
    windows: list[Annotated[int, Field(ge=1, strict=True)]] = Field(min_length=1)
    tokens: int = Field(24, ge=1, description="Decoded per rule; at least one whole window.")


class Statistics(_Strict):
    """Intervals and tests."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of every interval.")
    resamples: int = Field(9999, ge=99, description="Bootstrap resamples.")
    perplexity_margin: float = Field(0.01, gt=0, description="Equivalence margin, relative.")
    accuracy_margin: float = Field(0.05, gt=0, lt=1, description="Equivalence margin, absolute.")


class Config(_Strict):
    """The whole configuration."""

    study: Name = Field(description="Results go to results/<study>/.")
    seed: int = Field(
        0, ge=0, description="Seeds document splits, tasks, random scores, bootstrap."
    )
    device: Device = Field("auto", description="auto: cuda where there is one, else cpu.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the device gains from it.")
    only: str | list[Name] | None = Field(None, description="Restrict the run to these models.")
    models: dict[Name, Model] = Field(default_factory=dict)
    specimens: str | None = Field(None, description="Folder of trained specimens to include.")
    training: Training | None = Field(None, description="How specimens are trained.")
    corpora: dict[Name, Corpus] = Field(min_length=1)
    text: Text
    tasks: dict[Name, Task] = Field(default_factory=dict)
    grid: Grid
    random_seeds: int = Field(5, ge=1, description="Seeds of the random score.")
    capability: Capability
    ablation: Ablation
    state: State | None = Field(None, description="The study of recurrent states.")
    statistics: Statistics = Statistics()
    benchmark: Benchmark | None = Field(None, description="What is timed, where it is asked for.")

    @model_validator(mode="after")
    def _names(self) -> Config:
        corpora, tasks = set(self.corpora), set(self.tasks)
        if clash := (corpora & tasks) | ((corpora | tasks | set(self.models)) & RESERVED_NAMES):
            raise ValueError(f"names used twice or reserved: {', '.join(sorted(clash))}")
        for name, task in self.tasks.items():
            if unknown := set(task.corpora or ()) - corpora:
                raise ValueError(
                    f"tasks.{name}.corpora: unknown corpus {', '.join(sorted(unknown))}"
                )
        for where, dial in self._dials():
            for window in dial.windows:
                if window != "sequence" and window > self.text.block:
                    raise ValueError(f"{where}.windows: {window} exceeds text.block")
        return self

    @model_validator(mode="after")
    def _corpora(self) -> Config:
        corpora = set(self.corpora)
        sections = {
            "training.corpora": self.training.corpora if self.training else None,
            "benchmark.corpus": [self.benchmark.corpus] if self.benchmark else None,
            "capability.corpus": [self.capability.corpus],
            "text.specimen_corpora": self.text.specimen_corpora,
            "state.corpora": self.state.corpora if self.state else None,
        }
        for key, wanted in sections.items():
            if unknown := set(wanted or ()) - corpora:
                raise ValueError(f"{key}: unknown corpus {', '.join(sorted(unknown))}")
        if self.training and (clash := set(self.training.corpora) & set(self.training.text)):
            raise ValueError(f"training.text: {', '.join(sorted(clash))} is a corpus already")
        if self.capability.corpus not in (self.text.specimen_corpora or corpora):
            raise ValueError(
                f"text.specimen_corpora: tasks need {self.capability.corpus}, the corpus that"
                " capability.corpus names"
            )
        return self

    def _dials(self) -> list[tuple[str, Dial]]:
        dials = [("grid.windowed", self.grid.windowed)]
        for name, corpus in self.corpora.items():
            if corpus.grid.windowed is not None:
                dials.append((f"corpora.{name}.grid.windowed", corpus.grid.windowed))
        if self.state is not None:
            dials.append(("state.windowed", self.state.windowed))
        return dials

    def covers(self, model: str, corpus: str) -> bool:
        """Whether `model` is run on `corpus`."""
        wanted = self.text.specimen_corpora
        specimen = self.all_models()[model].origin == "specimen"
        return not specimen or wanted is None or corpus in wanted

    def studies(self, model: str, kind: SiteKind, corpus: str | None = None) -> bool:
        """Whether sites of `kind` are studied in `model` (on `corpus`)."""
        if kind not in self.all_models()[model].sites:
            return False
        if corpus is not None and not self.covers(model, corpus):
            return False
        if kind == "ffn":
            return True
        if self.state is None:
            return False
        return corpus is None or self.state.corpora is None or corpus in self.state.corpora

    def all_models(self) -> dict[str, Model]:
        """The configured models and the specimens found, before `only`."""
        return {**_find_specimens(self.specimens), **self.models}

    def active_models(self) -> dict[str, Model]:
        """The models of this run.

        Raises:
            ConfigError: `only` names a model that is not there, or no model is left.
        """
        models = self.all_models()
        wanted = self.only.split(",") if isinstance(self.only, str) else self.only
        if wanted is not None:
            if unknown := [name for name in wanted if name not in models]:
                raise ConfigError(
                    f"only: unknown model {', '.join(unknown)}; known: {', '.join(models)}"
                )
            models = {name: models[name] for name in wanted}
        if not models:
            raise ConfigError("models: no model is configured and no specimen was found")
        return models

    def corpus_grid(self, corpus: str) -> Grid:
        """The grid of one corpus: the study's, with the corpus's own parts in place."""
        own = self.corpora[corpus].grid
        return Grid(
            static=own.static or self.grid.static,
            dynamic=own.dynamic or self.grid.dynamic,
            windowed=own.windowed or self.grid.windowed,
        )

    def seeds(self) -> list[int]:
        """The seeds of the random score."""
        return [self.seed + at for at in range(self.random_seeds)]

    def needs_gradients(self, corpus: str) -> bool:
        """Whether a score of this corpus's grid needs the gradient of the loss."""
        return "taylor" in self.corpus_grid(corpus).static.scores

    def evaluation_tokens(self, model: str) -> int:
        """Evaluation tokens per corpus for `model`."""
        specimen = self.all_models()[model].origin == "specimen"
        return self.text.specimen_evaluation_tokens if specimen else self.text.evaluation_tokens


def _find_specimens(folder: str | None) -> dict[str, Model]:
    if folder is None:
        return {}
    found = sorted(p.parent for p in Path(folder).glob("*/config.json"))
    return {p.name: Model(path=str(p), origin="specimen", sites=_specimen_sites(p)) for p in found}


def _specimen_sites(folder: Path) -> list[SiteKind]:
    """What kinds of sites a specimen has, so that no job looks for others."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = content.get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None  # the job that prepares the model will say what is wrong
    if kind in ("mamba", "mamba2"):
        return ["state"]
    return ["ffn", "state"] if kind in (*_HYBRIDS, None) else ["ffn"]


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or check its spelling"
        lines.append(f"{key}: {message} (got {item['input']!r:.80})")
    return "\n".join(lines)


def from_mapping(config: Mapping[str, Any]) -> Config:
    """Check a configuration that is already in memory.

    Raises:
        ConfigError: with one line per problem, each naming the key.
    """
    try:
        return Config.model_validate(json.loads(json.dumps(config)))
    except ValidationError as error:
        raise ConfigError(f"invalid configuration\n{_explain(error)}") from None


def load(path: str | Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys; see config.yaml")
    return from_mapping(content)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
