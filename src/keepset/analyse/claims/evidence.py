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

from keepset.analyse import stats
from keepset.analyse.claims.runs import DENSE, Key, Run, Setting, find_runs, key_of
from keepset.analyse.effects import Effect, Sampling, log_ratio
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

    def which(self, **wanted: Any) -> Iterator[tuple[str, str]]:
        """(model, origin) of the models with these traits; a list names alternatives."""
        table = self.models
        for trait, value in wanted.items():
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
        key = DENSE if setting is None else key_of(setting)
        return self._texts.get((model, corpus), {}).get(key)

    def answers(self, model: str, task: str, setting: Setting | None) -> Run | None:
        """correct by item, as for `losses`."""
        key = DENSE if setting is None else key_of(setting)
        return self._tasks.get((model, task), {}).get(key)

    def windows(self, model: str, corpus: str, setting: Setting) -> list[str]:
        """The windows that a windowed setting was run with, shortest first."""
        wanted = key_of({**setting, "window": None})
        found = [key[5] for key in self._texts.get((model, corpus), {}) if _fits(key, wanted)]
        return sorted(found, key=lambda w: math.inf if w == "sequence" else float(w))

    def ratio(self, model: str, corpus: str, a: Setting, b: Setting | None) -> Effect | None:
        """Log ratio of the perplexities of two settings; `b` None is dense.

        Returns:
            None where a setting was not run.

        Raises:
            KeepsetError: the two have not the same blocks.
        """
        here, there = self.losses(model, corpus, a), self.losses(model, corpus, b)
        if here is None or there is None:
            return None
        same_items(here, there, f"{model} {corpus}: {describe(a)} and {describe(b)}")
        tokens = there.values["n_tokens"]
        return log_ratio(here.values["nll"], there.values["nll"], tokens, self.sampling)

    def costs(self, model: str, corpus: str, setting: Setting) -> NDArray[np.float64] | None:
        """Nats per token that a setting costs in each block, None where it was not run."""
        here, dense = self.losses(model, corpus, setting), self.losses(model, corpus, None)
        if here is None or dense is None:
            return None
        same_items(here, dense, f"{model} {corpus}: {describe(setting)} and dense")
        tokens = dense.values["n_tokens"]
        return (here.values["nll"] - dense.values["nll"]) / tokens.mean()

    def does(self, correct: NDArray[np.float64]) -> bool:
        """Whether a model does a task at all: dense accuracy clearly above the margin.

        Else a loss as large as the margin could not be seen.
        """
        found = stats.wilson(int(correct.sum()), len(correct), self.statistics.confidence)
        return found.low > self.statistics.accuracy_margin

    @cached_property
    def _texts(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.perplexity, "corpus", "block", ["nll", "n_tokens"])

    @cached_property
    def _tasks(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.capability, "task", "item", ["correct"])


def same_items(here: Run, there: Run, names: str) -> None:
    """Refuse to compare runs of different blocks or items.

    Raises:
        KeepsetError: they differ.
    """
    if not np.array_equal(here.at, there.at):
        raise KeepsetError(f"{names} have not the same blocks or items; evaluate both again")


def _fits(key: Key, wanted: Key) -> bool:
    """Whether two keys differ in the window alone."""
    return len(key) == len(wanted) and (*key[:5], key[6]) == (*wanted[:5], wanted[6])


def groups(table: pd.DataFrame, *keys: str) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """(names, rows) of each group, in the order in which groups first appear."""
    for names, rows in table.groupby(list(keys), sort=False) if len(table) else ():
        yield [str(name) for name in names], rows


def matching(table: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The rows of one setting."""
    for column, value in setting.items():
        table = table[table[column] == value]
    return table


def describe(setting: Setting | None) -> str:
    """A setting in words: "static magnitude 90%", "dynamic impact 90% (write)"."""
    if setting is None:
        return "dense"
    words = f"{setting['method']} {setting['score']} {100 * setting['sparsity']:g}%"
    if "window" in setting:
        words += f" W={setting['window']} {setting['choice']}"
    access = setting.get("access", "none")
    return words if access in ("none", "both") else f"{words} ({access})"
