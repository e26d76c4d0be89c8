"""The result tables of a study, as rules read them. A table that is not there is empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keepset.analyse import effects, perplexities
from keepset.analyse.bounds import Effect
from keepset.analyse.claims.runs import (
    DENSE,
    Key,
    Run,
    Setting,
    Shared,
    find_runs,
    key_of,
    setting_name,
    share_blocks,
)
from keepset.analyse.perplexities import Rounding
from keepset.analyse.stats import Floats
from keepset.errors import KeepsetError
from keepset.measure.skill import does_task
from keepset.settings import Statistics
from keepset.sites.families import FAMILIES

SWIGLU = frozenset({"silu", "swish"})
LOSSES = ["nll", "n_tokens", "document"]
Named = tuple[str, Setting | None]
"""A model, and the setting that it was run under; None is dense."""


def traits(info: Mapping[str, Any], *, l1: bool = False, induction: bool = False) -> dict[str, Any]:
    """What kind of model one is, from what was recorded when it was prepared.

    Args:
        info: name, origin, model_type and activation.
        l1: Whether it was trained with a penalty on |h|.
        induction: Whether its training started near a hand-made induction circuit.

    Returns:
        A row of `Evidence.models`: model, origin, architecture (transformer, hybrid, recurrent),
        ffn (relu, swiglu, other, none; experts where it is routed), state (its kind, e.g. mamba2;
        none), experts, l1, induction.
    """
    family = FAMILIES.get(info["model_type"])
    architecture = family.architecture if family is not None else "transformer"
    routed = family is not None and family.experts
    activation = info["activation"]
    ffn = "relu" if activation == "relu" else "swiglu" if activation in SWIGLU else "other"
    return {
        "model": info["name"],
        "origin": info["origin"],
        "architecture": architecture,
        "ffn": "none" if architecture == "recurrent" else "experts" if routed else ffn,
        "state": (family and family.memory) or "none",
        "experts": routed,
        "l1": l1,
        "induction": induction,
    }


@dataclass(frozen=True)
class Evidence:
    """The tables of a study; see docs/METHODS.md, section 6.

    Attributes:
        models: What `traits` returns, a row per model.
        perplexity: Per setting and block.
        rounding: The same of the dynamic rules again, per `draw`: h disturbed in its last bit.
        capability: Per setting and item.
        correlation: Per layer, with a pooled row at layer -1, and per `left_out`.
        ablations: Per ablated unit: model, origin, corpus, layer, unit, magnitude, weight, output,
            taylor, loss, and magnitude_other, output_other, taylor_other, scored on other text.
        channels: Per state channel and `left_out`: model, origin, corpus, layer, group, channel,
            magnitude, energy, n_documents.
        memory: Per scoring method: model, origin, corpus, method, peak_bytes, n_tokens.
        tasks: Task -> kind.
        documents: Corpus -> documents that there are for evaluation.
        calibration_documents: Corpus -> documents that there are for calibration.
        statistics: Levels and margins.
    """

    models: pd.DataFrame
    perplexity: pd.DataFrame = field(default_factory=pd.DataFrame)
    rounding: pd.DataFrame = field(default_factory=pd.DataFrame)
    capability: pd.DataFrame = field(default_factory=pd.DataFrame)
    correlation: pd.DataFrame = field(default_factory=pd.DataFrame)
    ablations: pd.DataFrame = field(default_factory=pd.DataFrame)
    channels: pd.DataFrame = field(default_factory=pd.DataFrame)
    memory: pd.DataFrame = field(default_factory=pd.DataFrame)
    tasks: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, int] = field(default_factory=dict)
    calibration_documents: Mapping[str, int] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)

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
        """nll, n_tokens and document by block; `setting` None is dense. None: it was not run."""
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

    def sparsities(self, model: str, corpus: str, *rule: str) -> list[float]:
        """The sparsities that a rule (site, method, score) was run at, in order."""
        keys = [key for key in self._texts.get((model, corpus), {}) if key != DENSE]
        return sorted({key[3] for key in keys if key[:3] == rule})

    def shared(self, corpus: str, *runs: Named) -> Shared | None:
        """Runs on the blocks that all of them have; None where one was not run.

        Raises:
            KeepsetError: they have not the same blocks.
        """
        losses = [self.losses(model, corpus, setting) for model, setting in runs]
        known = [run for run in losses if run is not None]
        return share_blocks(known, _names(corpus, runs)) if len(known) == len(runs) else None

    def ratio(self, model: str, corpus: str, a: Setting | None, b: Setting | None) -> Effect | None:
        """Log ratio of perplexities; None is dense. None where a setting was not run.

        Raises:
            KeepsetError: the two have not the same blocks.
        """
        runs = ((model, a), (model, b))
        shared = self.shared(corpus, *runs)
        if shared is None:
            return None
        text = (shared.n_tokens, shared.document, self.statistics.confidence)
        here, there = shared.nll
        ratio = effects.log_ratio(here, there, *text, self.rounding_of(corpus, *runs))
        return self._limited(ratio, corpus)

    def cost_ratio(self, model: str, rival: str, corpus: str, setting: Setting) -> Effect | None:
        """Log of what a setting costs one model over what it costs another, on the same text.

        None where it was not run for one of them.

        Raises:
            KeepsetError: the two have not the same blocks.
        """
        runs = ((model, setting), (model, None), (rival, setting), (rival, None))
        shared = self.shared(corpus, *runs)
        if shared is None:
            return None
        here, dense, there, dense_there = shared.nll
        costs = ((here, dense), (there, dense_there))
        text = (shared.n_tokens, shared.document, self.statistics.confidence)
        ratio = effects.ratio_of_ratios(costs, *text, self.rounding_of(corpus, *runs))
        return self._limited(ratio, corpus)

    def _limited(self, effect: Effect, corpus: str) -> Effect:
        """The effect, with how many documents can be had of its corpus."""
        return replace(effect, limit=self.documents.get(corpus, math.inf))

    def rounding_of(self, corpus: str, *runs: Named) -> list[Rounding]:
        """How much of the runs' losses is rounding, on the blocks that all have; where measured."""
        losses = [self.losses(model, corpus, setting) for model, setting in runs]
        compared = [run for run in losses if run is not None]
        total = float(share_blocks(compared, _names(corpus, runs)).n_tokens.sum())
        measured = []
        for model, setting in runs:
            texts = [draw.get((model, corpus), {}) for draw in self._draws]
            draws = [text[key_of(setting)] for text in texts if key_of(setting) in text]
            if draws:
                again = share_blocks(draws, _names(corpus, runs) + ": the draws of rounding")
                measured.append(perplexities.rounding(again.nll, again.n_tokens, total))
        return measured

    def size_by_layer(self, model: str, site: str, impact: str) -> pd.DataFrame:
        """Correlations of size with an impact in single layers, whatever text is left out."""
        columns = ["model", "site", "impact", "size", "layer", "corpus"]
        table = self.correlation if len(self.correlation) else pd.DataFrame(columns=columns)
        rows = (table["model"] == model) & (table["site"] == site) & (table["impact"] == impact)
        return table[rows & (table["size"] == "magnitude") & (table["layer"] >= 0)]

    def does_task(self, correct: NDArray[np.float64]) -> bool:
        """`keepset.measure.skill.does_task` at the study's level and margin."""
        levels = self.statistics
        return does_task(correct, levels.confidence, levels.accuracy_margin)

    @cached_property
    def _texts(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.perplexity, "corpus", "block", LOSSES)

    @cached_property
    def _draws(self) -> list[dict[tuple[str, str], dict[Key, Run]]]:
        draws = self.rounding.groupby("draw") if len(self.rounding) else ()
        return [find_runs(rows, "corpus", "block", LOSSES) for _, rows in draws]

    @cached_property
    def _tasks(self) -> dict[tuple[str, str], dict[Key, Run]]:
        return find_runs(self.capability, "task", "item", ["correct"])


def _names(corpus: str, runs: Sequence[Named]) -> str:
    """What a message calls runs."""
    return " and ".join(f"{model} {corpus} {setting_name(setting)}" for model, setting in runs)


def same_items(a: Run, b: Run, names: str) -> None:
    """Refuse to compare runs of different items.

    Raises:
        KeepsetError: they differ.
    """
    if not np.array_equal(a.items, b.items):
        raise KeepsetError(f"{names} have not the same items; evaluate both again")


def groups(table: pd.DataFrame, *keys: str) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """(names, rows) of each group, in the order in which groups first appear."""
    for names, rows in table.groupby(list(keys), sort=False) if len(table) else ():
        yield [str(name) for name in names], rows
