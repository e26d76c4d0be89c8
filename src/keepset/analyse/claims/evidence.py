"""The result tables of a study, as rules read them. A table that is not there is empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keepset.analyse import accuracies, perplexities
from keepset.analyse.bounds import Effect
from keepset.analyse.claims.runs import DENSE, Key, Run, Setting, find_runs, key_of, setting_name
from keepset.analyse.effects import log_ratio
from keepset.analyse.stats import Floats, Sampling
from keepset.errors import KeepsetError
from keepset.settings import Statistics
from keepset.sites.families import FAMILIES

SWIGLU = frozenset({"silu", "swish"})


def traits(info: Mapping[str, Any], *, l1: bool = False) -> dict[str, Any]:
    """What kind of model one is, from what was recorded when it was prepared.

    Args:
        info: name, origin, model_type and activation.
        l1: Whether it was trained with a penalty on |h|.

    Returns:
        A row of `Evidence.models`: model, origin, architecture (transformer, hybrid, recurrent),
        ffn (relu, swiglu, other, none), l1.
    """
    family = FAMILIES.get(info["model_type"])
    architecture = family.architecture if family is not None else "transformer"
    activation = info["activation"]
    ffn = "relu" if activation == "relu" else "swiglu" if activation in SWIGLU else "other"
    return {
        "model": info["name"],
        "origin": info["origin"],
        "architecture": architecture,
        "ffn": "none" if architecture == "recurrent" else ffn,
        "l1": l1,
    }


@dataclass(frozen=True)
class Evidence:
    """The tables of a study; see docs/METHODS.md, section 6.

    Attributes:
        models: What `traits` returns, a row per model.
        perplexity: Per setting and block.
        capability: Per setting and item.
        correlation: Per layer, with a pooled row at layer -1.
        ablations: Per ablated unit: model, origin, corpus, layer, unit, magnitude, weight, output,
            taylor, loss.
        channels: Per state channel: model, origin, corpus, layer, group, channel, magnitude,
            energy.
        memory: Per scoring method: model, origin, corpus, method, peak_bytes, n_tokens.
        tasks: Task -> kind.
        statistics: Levels and margins.
        seed: Of the bootstrap.
    """

    models: pd.DataFrame
    perplexity: pd.DataFrame = field(default_factory=pd.DataFrame)
    capability: pd.DataFrame = field(default_factory=pd.DataFrame)
    correlation: pd.DataFrame = field(default_factory=pd.DataFrame)
    ablations: pd.DataFrame = field(default_factory=pd.DataFrame)
    channels: pd.DataFrame = field(default_factory=pd.DataFrame)
    memory: pd.DataFrame = field(default_factory=pd.DataFrame)
    tasks: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        """How intervals are made."""
        return Sampling(self.statistics.confidence, self.statistics.resamples, self.seed)

    def models_with(self, **required: Any) -> Iterator[tuple[str, str]]:
        """(model, origin) of the models with these traits; a list names alternatives."""
        table = self.models
        for trait, value in required.items():
            table = table[table[trait].isin(value if isinstance(value, list) else [value])]
        yield from zip(table["model"], table["origin"], strict=True)

    def corpora(self, model: str) -> list[str]:
        """The corpora that a model has perplexities of."""
        return [corpus for name, corpus in self._texts if name == model]

    def tasks_of(self, model: str) -> list[str]:
        """The tasks that a model was run on."""
        return [task for name, task in self._tasks if name == model]

    def losses(self, model: str, corpus: str, setting: Setting | None) -> Run | None:
        """nll and n_tokens by block; `setting` None is dense. None where it was not run."""
        return self._texts.get((model, corpus), {}).get(key_of(setting))

    def answers(self, model: str, task: str, setting: Setting) -> tuple[Floats, Floats] | None:
        """correct by item: under a setting, and dense. None where one was not run.

        Raises:
            KeepsetError: the two have not the same items.
        """
        runs = self._tasks.get((model, task), {})
        run, dense = runs.get(key_of(setting)), runs.get(DENSE)
        if run is None or dense is None:
            return None
        same_items(run, dense, f"{model} {task}: {setting_name(setting)} and dense")
        return run.values["correct"], dense.values["correct"]

    def windows(self, model: str, corpus: str, setting: Setting) -> list[str]:
        """The windows that a windowed setting was run with, shortest first."""
        *rule, _, choice = key_of({**setting, "window": None})
        keys = [key for key in self._texts.get((model, corpus), {}) if key != DENSE]
        windows = [key[5] for key in keys if (*key[:5], key[6]) == (*rule, choice)]
        return sorted(windows, key=lambda w: math.inf if w == "sequence" else float(w))

    def ratio(self, model: str, corpus: str, a: Setting, b: Setting | None) -> Effect | None:
        """Log ratio of perplexities; `b` None is dense. None where a setting was not run.

        Raises:
            KeepsetError: the two have not the same blocks.
        """
        paired = self._paired(model, corpus, a, b)
        return log_ratio(*paired, self.sampling) if paired is not None else None

    def costs(self, model: str, corpus: str, setting: Setting) -> Floats | None:
        """Nats per token that a setting costs in each block, None where it was not run."""
        paired = self._paired(model, corpus, setting, None)
        return perplexities.log_ratios(*paired) if paired is not None else None

    def _paired(
        self, model: str, corpus: str, a: Setting, b: Setting | None
    ) -> tuple[Floats, Floats, Floats] | None:
        """By block: nll under `a`, nll under `b`, n_tokens. None where one was not run."""
        run, other = self.losses(model, corpus, a), self.losses(model, corpus, b)
        if run is None or other is None:
            return None
        same_items(run, other, f"{model} {corpus}: {setting_name(a)} and {setting_name(b)}")
        return run.values["nll"], other.values["nll"], other.values["n_tokens"]

    def size_by_layer(self, model: str, site: str, impact: str) -> pd.DataFrame:
        """Correlations of size with an impact in single layers, those that are known."""
        columns = ["model", "site", "impact", "size", "layer", "corpus", "spearman"]
        table = self.correlation if len(self.correlation) else pd.DataFrame(columns=columns)
        rows = (table["model"] == model) & (table["site"] == site) & (table["impact"] == impact)
        rows &= (table["size"] == "magnitude") & (table["layer"] >= 0)
        return table[rows & table["spearman"].notna()]

    def does_task(self, correct: NDArray[np.float64]) -> bool:
        """Whether a model does a task at all: dense accuracy clearly above the margin.

        Otherwise a loss as large as the margin could not be seen.
        """
        interval = accuracies.wilson(int(correct.sum()), len(correct), self.statistics.confidence)
        return interval.low > self.statistics.accuracy_margin

    @cached_property
    def _texts(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.perplexity, "corpus", "block", ["nll", "n_tokens"])

    @cached_property
    def _tasks(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.capability, "task", "item", ["correct"])


def same_items(a: Run, b: Run, names: str) -> None:
    """Refuse to compare runs of different blocks or items.

    Raises:
        KeepsetError: they differ.
    """
    if not np.array_equal(a.items, b.items):
        raise KeepsetError(f"{names} have not the same blocks or items; evaluate both again")


def groups(table: pd.DataFrame, *keys: str) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """(names, rows) of each group, in the order in which groups first appear."""
    for names, rows in table.groupby(list(keys), sort=False) if len(table) else ():
        yield [str(name) for name in names], rows
