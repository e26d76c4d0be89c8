"""The whole configuration, and how it is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from keepset.errors import ConfigError
from keepset.rules.kinds import KINDS
from keepset.rules.scores import NEURON_SCORES, need_gradients
from keepset.settings import reading
from keepset.settings.base import NAME, Device, Dtype, Name, SiteKind, Strict
from keepset.settings.grids import (
    Ablation,
    BudgetGrid,
    Capability,
    Dial,
    Expert,
    Grid,
    GridOverride,
    InputGrid,
    Slimming,
    State,
)
from keepset.settings.measuring import Benchmark, Kernels, Statistics
from keepset.settings.recipes import recipe_name
from keepset.settings.sources import Model, Task, Text, TextSource
from keepset.settings.training import Training
from keepset.sites.families import FAMILIES

RESERVED_NAMES = frozenset({
    "benchmarks", "checkpoint", "claims.csv", "claims.html", "claims_cases.csv", "corpora",
    "figures", "kernels", "kernels.csv", "kernels.json", "kernels.parquet", "logs", "model.json",
    "records", "report.zip", "significance", "tables", "tasks", "training",
})  # fmt: skip
"""Files and folders that stand beside those of models, or of corpora and tasks, in results."""


class Corpus(Strict):
    """One corpus: either `text`, split here by document, or two or three separate sources."""

    text: TextSource | None = Field(None, description="One source, split by document.")
    calibration: TextSource | None = Field(None, description="Text that keep sets are chosen on.")
    evaluation: TextSource | None = Field(None, description="Text that results are reported on.")
    heldout: TextSource | None = Field(None, description="Text that built tasks are made from.")
    grid: GridOverride = Field(GridOverride(), description="Replaces parts of the study's grid.")
    ablation: bool = Field(False, description="Measure the loss change of single-unit ablations.")
    sampling: Literal["documents", "stream"] = Field(
        "documents",
        description="documents: blocks of as many documents as there are, at seeded places; stream:"
        " consecutive blocks of the joined documents from their start, as in published results.",
    )

    @model_validator(mode="after")
    def _sources(self) -> Corpus:
        split = self.calibration is not None and self.evaluation is not None
        some = any(s is not None for s in (self.calibration, self.evaluation, self.heldout))
        if (self.text is not None) == some or (some and not split):
            raise ValueError("give either text, or calibration and evaluation (and heldout)")
        return self


class Config(Strict):
    """The whole configuration."""

    study: Name = Field(description="Results go to results/<study>/.")
    seed: int = Field(0, ge=0, description="Seeds document splits, tasks, random scores.")
    device: Device = Field("auto", description="auto: cuda where there is one, else cpu.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the device gains from it.")
    kernels: Kernels = Field(Kernels(), description="Which implementations run.")
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
    input: InputGrid | None = Field(None, description="The study of inputs of linear maps.")
    budget: BudgetGrid | None = Field(None, description="Shares of sites, allotted.")
    state: State | None = Field(None, description="The study of recurrent states.")
    expert: Expert | None = Field(None, description="The study of routed experts.")
    statistics: Statistics = Statistics()
    slim: Slimming | None = Field(None, description="Slimmer models, where it is asked for.")
    benchmark: Benchmark | None = Field(None, description="What is timed, where it is asked for.")

    @model_validator(mode="after")
    def _names(self) -> Config:
        corpora, tasks = set(self.corpora), set(self.tasks)
        names = corpora | tasks | set(self.models)
        reserved = {name for name in names if name.lower() in RESERVED_NAMES}
        if clash := (corpora & tasks) | reserved:
            raise ValueError(f"names used twice or reserved: {', '.join(sorted(clash))}")
        specimens = self.training.specimens if self.training else ()
        for group in ([*corpora, *tasks], self.models, specimens):
            if twins := _twins(group):
                raise ValueError(f"{twins} differ in case only, and name folders; rename one")
        for name, task in self.tasks.items():
            if unknown := set(task.corpora or ()) - corpora:
                raise ValueError(
                    f"tasks.{name}.corpora: unknown corpus {', '.join(sorted(unknown))}"
                )
        self._check_recipes()
        for where, dial in self._dials():
            for window in dial.windows:
                if window != "sequence" and window > self.text.block:
                    raise ValueError(f"{where}.windows: {window} exceeds text.block")
        return self

    def _check_recipes(self) -> None:
        for model, recipes in self.capability.recipes.items():
            key = f"capability.recipes.{model}"
            if model not in self.all_models():
                raise ValueError(f"{key}: there is no model of this name")
            names = [recipe_name(recipe) for recipe in recipes]
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: two recipes have one name; their rows could not be told")

    @model_validator(mode="after")
    def _corpora(self) -> Config:
        corpora = set(self.corpora)
        sections = {
            "training.corpora": self.training.corpora if self.training else None,
            "benchmark.corpus": [self.benchmark.corpus] if self.benchmark else None,
            "capability.corpus": [self.capability.corpus],
            "text.specimen_corpora": self.text.specimen_corpora,
            "budget.corpora": self.budget.corpora if self.budget else None,
            "slim.corpus": [self.slim.corpus] if self.slim else None,
            "input.corpora": self.input.corpora if self.input else None,
            "state.corpora": self.state.corpora if self.state else None,
            "expert.corpora": self.expert.corpora if self.expert else None,
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
        sections = {"input": self.input, "state": self.state, "expert": self.expert}
        for name, section in sections.items():
            if section is not None:
                dials.append((f"{name}.windowed", section.windowed))
        return dials

    def covers(self, model: str, corpus: str) -> bool:
        """Whether `model` is run on `corpus`."""
        wanted = self.text.specimen_corpora
        specimen = self.all_models()[model].origin == "specimen"
        return not specimen or wanted is None or corpus in wanted

    def section(
        self, kind: str, corpus: str | None = None
    ) -> Grid | InputGrid | State | Expert | None:
        """The section that the grid of a kind of site stands in (as `corpus` has it), or None."""
        if corpus is not None and KINDS[kind].section == "grid":
            return self.corpus_grid(corpus)
        section: Grid | InputGrid | State | Expert | None = getattr(self, KINDS[kind].section)
        return section

    def studies(self, model: str, kind: str, corpus: str | None = None) -> bool:
        """Whether sites of `kind` are studied in `model` (on `corpus`)."""
        section = self.section(kind)
        if section is None or kind not in self.all_models()[model].sites:
            return False
        return corpus is None or (self.covers(model, corpus) and section.covers(corpus))

    def studied_kinds(self, model: str, corpus: str | None = None) -> list[str]:
        """The kinds of sites that are studied in `model` (on `corpus`)."""
        return [kind for kind in KINDS if self.studies(model, kind, corpus)]

    def allots(self, model: str, corpus: str) -> bool:
        """Whether shares of a budget are allotted to the sites of `model` on `corpus`."""
        if self.budget is None or "input" not in self.all_models()[model].sites:
            return False
        wanted = self.budget.corpora
        return self.covers(model, corpus) and (wanted is None or corpus in wanted)

    def has_kind(self, kind: str) -> bool:
        """Whether sites of `kind` are studied in a model of this run."""
        models = self.active_models()
        return any(self.studies(model, kind, corpus) for model in models for corpus in self.corpora)

    def has_task(self, kind: str) -> bool:
        """Whether a task of `kind` is run."""
        return bool(self.tasks_of(kind))

    def tasks_of(self, kind: str, *, others: bool = False) -> list[str]:
        """The tasks of a kind, or those of all other kinds."""
        return [name for name, task in self.tasks.items() if (task.kind == kind) != others]

    def all_models(self) -> dict[str, Model]:
        """The configured models and the specimens found, before `only`.

        Their order is that of every table and figure: pretrained models stand first.
        """
        models = {**find_specimens(self.specimens), **self.models}
        return dict(sorted(models.items(), key=lambda item: item[1].origin == "specimen"))

    def active_models(self) -> dict[str, Model]:
        """The models of this run.

        Raises:
            ConfigError: `only` names a model that is not there, or no model is left.
        """
        models = self.all_models()
        wanted = self.only
        if isinstance(wanted, str):
            wanted = [name.strip() for name in wanted.split(",")]
        if wanted == []:
            raise ConfigError("only: names no model; null runs all of them")
        if wanted is not None:
            if unknown := [name for name in wanted if name not in models]:
                raise ConfigError(
                    f"only: unknown model {', '.join(unknown)}; known: {', '.join(models)}"
                )
            models = {name: model for name, model in models.items() if name in wanted}
        if not models:
            raise ConfigError("models: no model is configured and no specimen was found")
        if twins := _twins(models):
            raise ConfigError(f"models: {twins} differ in case only, and name folders; rename one")
        if reserved := [name for name in models if name.lower() in RESERVED_NAMES]:
            raise ConfigError(f"specimens: {', '.join(reserved)} is reserved; rename the folder")
        jobs = Counter(f"{model}.{on}" for model in models for on in (*self.corpora, *self.tasks))
        if shared := [name for name, count in jobs.items() if count > 1]:
            raise ConfigError(
                f"models: two jobs would share the log {shared[0]}; rename a model, corpus or task"
            )
        return models

    def corpus_grid(self, corpus: str) -> Grid:
        """The grid of one corpus: the study's, with the corpus's own parts in place."""
        override = self.corpora[corpus].grid
        return Grid(
            static=override.static or self.grid.static,
            dynamic=override.dynamic or self.grid.dynamic,
            windowed=override.windowed or self.grid.windowed,
        )

    def seeds(self) -> list[int]:
        """The seeds of the random score."""
        return [self.seed + number for number in range(self.random_seeds)]

    def needs_gradients(self, corpus: str) -> bool:
        """Whether a static score of inputs of linear maps needs the gradient of the loss here."""
        scores = [*self.corpus_grid(corpus).static.scores]
        if self.input is not None and self.input.covers(corpus):
            scores += self.input.static.scores
        return need_gradients(NEURON_SCORES, scores)

    def evaluation_tokens(self, model: str) -> int:
        """Evaluation tokens per corpus for `model`."""
        specimen = self.all_models()[model].origin == "specimen"
        return self.text.specimen_evaluation_tokens if specimen else self.text.evaluation_tokens

    def sameness_tokens(self, model: str) -> int:
        """The same, dense and under dynamic rules."""
        specimen = self.all_models()[model].origin == "specimen"
        tokens = self.text.specimen_sameness_tokens if specimen else self.text.sameness_tokens
        return tokens or self.evaluation_tokens(model)


def _twins(names: Iterable[str]) -> str:
    """Names that are one on a file system that knows no case, or nothing."""
    names = sorted(names, key=lambda name: (name.lower(), name))
    return next((f"{a} and {b}" for a, b in pairwise(names) if a.lower() == b.lower()), "")


def find_specimens(folder: str | None) -> dict[str, Model]:
    """The specimens in `folder` by name; none without a folder. Hidden folders are none.

    They are in the order that tells their story, from scratch-work to memory: those with neurons
    alone, those with a state alone, those with both.

    Raises:
        ConfigError: a specimen's folder has a name that a model cannot have.
    """
    if folder is None:
        return {}
    found = sorted(path.parent for path in Path(folder).glob("*/config.json"))
    folders = [path for path in found if not path.name.startswith(".")]
    for path in folders:
        if not re.fullmatch(NAME, path.name):
            raise ConfigError(
                f"specimens: {path}: a name has letters, digits, dots, underscores and hyphens, and"
                " begins with a letter or digit; rename the folder"
            )
    sites = {path: _specimen_sites(path) for path in folders}
    folders.sort(key=lambda path: (len(sites[path]), sites[path]))
    return {
        path.name: Model(path=str(path), origin="specimen", sites=sites[path]) for path in folders
    }


def _specimen_sites(folder: Path) -> list[SiteKind]:
    """What kinds of sites a specimen has, so that no job looks for others."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError):
        model_type = None  # the job that prepares the model will say what is wrong
    if model_type is None:
        return ["ffn", "state"]
    return list(FAMILIES[model_type].sites) if model_type in FAMILIES else ["ffn"]


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or check its spelling"
        elif item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
            # Snakemake takes quotes off, but reads what is in brackets as text.
            is_only = key.startswith("only")
            message += "; put it in " + ("brackets: only=[NAME]" if is_only else "quotes")
        lines.append(f"{key}: {message} (got {item['input']!r:.80})")
    return "\n".join(lines)


def from_mapping(config: Mapping[str, Any]) -> Config:
    """Check a configuration that is already in memory.

    Raises:
        ConfigError: with one line per problem, each naming the key.
    """
    try:
        return Config.model_validate(reading.plain(config))
    except ValidationError as error:
        raise ConfigError(f"invalid configuration\n{_explain(error)}") from None


def load(path: str | Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, is not YAML, does not fit, or has keys or values that YAML
            reads as something else than they look like.
    """
    return from_mapping(reading.read(path))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
