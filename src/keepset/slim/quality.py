"""What a recipe costs on some text and items, relative to dense, and how far that is known."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from keepset.analyse.accuracies import paired_difference
from keepset.analyse.perplexities import nats_per_token
from keepset.errors import TextError
from keepset.measure.runner import Runner
from keepset.rules.recipe import Recipe
from keepset.slim.settings import Budget
from keepset.text import Encoded

_FEW_DOCUMENTS = 8
"""With fewer documents blocks are the sample, as in one long text."""


@dataclass(frozen=True)
class Part:
    """Text and items on which recipes are measured.

    Attributes:
        name: search or report.
        blocks: (n_blocks, tokens) int64.
        documents: (n_blocks,) the document that each block is from.
        items: Of the task; none without one.
    """

    name: str
    blocks: Tensor
    documents: Tensor
    items: Sequence[Encoded] = ()

    @property
    def by_document(self) -> bool:
        """Whether documents are the sample, and not blocks."""
        return len(self.documents.unique()) >= _FEW_DOCUMENTS


@dataclass(frozen=True)
class Quality:
    """A recipe against dense on a part.

    Attributes:
        ratio: Perplexity over dense.
        ratio_low, ratio_high: Its one-sided bounds: each is passed with the budget's confidence.
        lost: Points of accuracy lost; NaN without a task.
        lost_low, lost_high: Its one-sided bounds.
    """

    ratio: float
    ratio_low: float
    ratio_high: float
    lost: float = math.nan
    lost_low: float = math.nan
    lost_high: float = math.nan

    def within(self, budget: Budget) -> bool:
        """Whether the bounds lie within a budget."""
        fine = budget.perplexity is None or self.ratio_high <= 1 + budget.perplexity
        return fine and (budget.points is None or self.lost_high <= budget.points)

    def words(self) -> str:
        """In words."""
        text = f"perplexity x{self.ratio:.4f} (at most {self.ratio_high:.4f})"
        if not math.isnan(self.lost):
            text += f", {self.lost:+.1f} points lost (at most {self.lost_high:.1f})"
        return text


class Meter:
    """Measures recipes, and remembers what it measured, on disk too, so that a run can go on."""

    def __init__(self, runner: Runner, journal: Path, owner: dict[str, Any]) -> None:
        """Go on with a journal of the same owner.

        Args:
            runner: The model and its sites.
            journal: The folder of journals: what is measured is appended to one of them.
            owner: Model, text and settings: a journal belongs to them.
        """
        self.runner = runner
        text = json.dumps(owner, sort_keys=True)
        self._path = journal / f"trials-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        self._known: dict[str, dict[str, list[float]]] = {}
        self._used: set[str] = set()
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8")
            if not text.endswith("\n"):
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the line that a run was stopped in
                self._known[entry.pop("key")] = entry
        self._of_before = set(self._known)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def measure(self, recipe: Recipe | None, part: Part) -> dict[str, list[float]]:
        """nll by block; correct, and the answer's probability (sure), by item."""
        key = _key(recipe, part)
        if key in self._known:
            self._used.add(key)
            return self._known[key]
        nll = self.runner.block_nll(part.blocks, recipe) if len(part.blocks) else torch.zeros(0)
        values: dict[str, list[float]] = {"nll": nll.tolist(), "correct": [], "sure": []}
        if part.items:
            words = self.runner.last_words(part.items, recipe)
            values["correct"] = words["correct"].astype(float).tolist()
            values["sure"] = np.exp(words["logprob"]).tolist()
        self._known[key] = values
        with self._path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"key": key, **values}) + "\n")
        return values

    @property
    def remembered(self) -> int:
        """How many measurements of a run before were used."""
        return len(self._used & self._of_before)

    def quality(self, recipe: Recipe, part: Part, confidence: float) -> Quality:
        """A recipe against dense, with one-sided bounds of `confidence` each."""
        slim, dense = self.measure(recipe, part), self.measure(None, part)
        change = np.asarray(slim["nll"]) - np.asarray(dense["nll"])
        per_block = self.runner.n_predicted(part.blocks) / max(1, len(part.blocks))
        units = part.documents.numpy() if part.by_document else np.arange(len(change))
        estimate = nats_per_token(change, np.full(len(change), per_block), units)
        half = estimate.error * float(stats.t.ppf(confidence, estimate.df))
        ratios = [_exp(estimate.value + side * half) for side in (0, -1, 1)]
        if not part.items:
            return Quality(*ratios)
        low, high = paired_difference(dense["correct"], slim["correct"], 2 * confidence - 1)
        lost = float(np.mean(dense["correct"]) - np.mean(slim["correct"]))
        return Quality(*ratios, *(100 * value for value in (lost, low, high)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _key(recipe: Recipe | None, part: Part) -> str:
    content: Any = None
    if recipe is not None:
        rules = {key: asdict(rule) for key, rule in recipe.rules.items()}
        held = (recipe.thresholds, recipe.kept, recipe.centres)
        content = [rules, *map(dict, held)]
    text = json.dumps([part.name, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def need_enough(part: Part, budget: Budget) -> None:
    """Refuse text or items that can decide nothing.

    Raises:
        TextError: there are too few; the message says how many are needed.
    """
    if budget.perplexity is not None and len(part.blocks) < 8:
        raise TextError(
            f"the text is too short to decide: {len(part.blocks)} blocks are left to report on, and"
            f" 8 are needed; give more text, or a smaller --block"
        )
    if budget.points is not None:
        z = float(stats.norm.ppf(budget.confidence))
        # With no answer changed, Tango's upper bound is z^2 / (n + z^2).
        share = budget.points / 100
        needed = math.ceil(z * z * (1 - share) / share)
        if len(part.items) < needed:
            raise TextError(
                f"{len(part.items)} items are left to report on: even if none changed,"
                f" {budget.points:g} points could not be decided; {needed} are needed there, so"
                f" give {2 * needed} in all"
            )
