"""Find the recipe that saves most within a budget, and check it on text it was not found on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from keepset.errors import KeepsetError
from keepset.rules.recipe import Recipe
from keepset.sites.ffn import Site
from keepset.slim import savings, sensitivity
from keepset.slim.candidates import Candidate
from keepset.slim.quality import Meter, Part, Quality
from keepset.slim.settings import Budget

LOOKS = 4
"""How often a recipe is held against the text that is reported on, at most."""
_LESS = 0.985
"""Each further look saves at most this much of the one before: near-copies would fail alike."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A candidate at a level, and what it costs on a part.

    Attributes:
        candidate: It.
        level: Of what can be left out.
        recipe: At that level.
        saved: As a share of the dense model's.
        quality: On the part.
    """

    candidate: Candidate
    level: float
    recipe: Recipe
    saved: float
    quality: Quality


class Search:
    """Tries candidates, and says what it tries."""

    def __init__(
        self,
        meter: Meter,
        sites: Sequence[Any],
        budget: Budget,
        search: Part,
        say: Say = lambda _: None,
    ) -> None:
        """Prepare a search; `search` is the text that it may see."""
        self.meter, self.budget, self.text = meter, budget, search
        self._sites = {site.key: site for site in sites}
        self._model = meter.runner.model
        self.total = savings.total(self._model, sites, budget.save)
        self._say = say
        self._start = time.monotonic()
        self._seconds: list[float] = []
        self.planned = 0
        self.tried = 0
        self.best: Trial | None = None
        self._fitting: list[Trial] = []

    def trial(self, candidate: Candidate, level: float, part: Part, confidence: float) -> Trial:
        """Measure a candidate at a level on a part."""
        start = time.monotonic()
        recipe = replace(candidate.recipe(level), bos=self.meter.runner.bos)
        quality = self.meter.quality(recipe, part, confidence)
        trial = Trial(candidate, level, recipe, self._saved(recipe), quality)
        self._seconds.append(time.monotonic() - start)
        self.tried += 1
        return trial

    def _saved(self, recipe: Recipe) -> float:
        shares: dict[str, float] = {}
        if recipe.thresholds:
            linear = [site for site in self._sites.values() if isinstance(site, Site)]
            few = self.text.blocks[:4]
            shares = sensitivity.shares_left_out(
                self._model, linear, recipe, few, bos=self.meter.runner.bos
            )
        return savings.saved(self._sites, recipe, shares, self.budget.save) / self.total

    def find(self, candidates: Sequence[Candidate]) -> Trial:
        """The trial that saves most within the budget, on the text of the search.

        The levels of the first candidate are halved, as what is lost rises with the level; the
        others start from the level found, and go on as long as they save more.

        Raises:
            KeepsetError: no candidate meets the budget at its lowest level; the message says what
                the best costs.
        """
        chosen = [candidate for candidate in candidates if not candidate.rival]
        self.planned = self.tried + 6 + 2 * len(chosen)
        lowest: list[Trial] = []
        for candidate in chosen:
            if self.best is None:
                self._halve(candidate, lowest)
            else:
                self._climb(candidate)
        if self.best is None:
            best = min(lowest, key=lambda one: (one.quality.lost, one.quality.ratio))
            raise KeepsetError(
                f"nothing meets the budget ({self.budget.words()}): the least that was tried,"
                f" {best.candidate.name} at {100 * best.level:g}%, has {best.quality.words()};"
                " allow more, or give more text so that the bounds are narrower"
            )
        return self.best

    def _halve(self, candidate: Candidate, lowest: list[Trial]) -> None:
        levels = candidate.levels
        low, high = -1, len(levels)
        while high - low > 1:
            middle = (low + high) // 2 if low >= 0 or high < len(levels) else len(levels) // 3
            trial = self._try(candidate, levels[middle])
            low, high = (middle, high) if self._fits(trial) else (low, middle)
            if middle == 0 and not self._fits(trial):
                lowest.append(trial)

    def _climb(self, candidate: Candidate) -> None:
        assert self.best is not None
        # A level saves as much in every candidate, up to the steps of its shares.
        start = self.best.level if self.best.candidate is not candidate else math.inf
        for level in (level for level in candidate.levels if level >= start):
            if not self._fits(self._try(candidate, level)):
                return

    def _try(self, candidate: Candidate, level: float) -> Trial:
        trial = self.trial(candidate, level, self.text, self.budget.confidence)
        if self._fits(trial):
            self._fitting.append(trial)
            self.best = max(self._fitting, key=lambda one: one.saved)
        best = "" if self.best is None else f"; best so far {self.best.saved:.1%}"
        left = max(0, self.planned - self.tried) * sum(self._seconds) / len(self._seconds)
        self._say(
            f"[{self.tried} of about {max(self.planned, self.tried)}] {candidate.name} at"
            f" {100 * level:g}%: {trial.quality.words()}, saves {trial.saved:.1%}{best};"
            f" about {clock(left)} left"
        )
        return trial

    def _fits(self, trial: Trial) -> bool:
        # What is missed on the search's own text by its bounds may be met on more text; a search
        # that goes by estimates would run into the report's bounds.
        return trial.quality.within(self.budget)

    def check(self, found: Trial, report: Part) -> tuple[Trial, int]:
        """Hold what was found against text that the search never saw; step down while it fails.

        The bounds are those of as many looks as are allowed (Bonferroni).

        Returns:
            The trial on the report's text, and the number of looks.

        Raises:
            KeepsetError: no level below meets the budget in as many looks as are allowed.
        """
        confidence = 1 - (1 - self.budget.confidence) / LOOKS
        trial = found
        for look, (candidate, level) in enumerate(islice(self._downwards(found), LOOKS), start=1):
            trial = self.trial(candidate, level, report, confidence)
            fits = trial.quality.within(self.budget)
            self._say(
                f"on text that the search never saw, {candidate.name} at {100 * level:g}%:"
                f" {trial.quality.words()}, saves {trial.saved:.1%}"
                + ("" if fits else ": not within the budget")
            )
            if fits:
                return trial, look
        raise KeepsetError(
            f"what the search found does not meet the budget ({self.budget.words()}) on other text:"
            f" {trial.candidate.name} at {100 * trial.level:g}% has {trial.quality.words()}; give"
            " more text, or allow more"
        )

    def _downwards(self, found: Trial) -> Iterator[tuple[Candidate, float]]:
        """What fitted in the search, by what it saves; then lower levels of the last of it."""
        last = found
        yield last.candidate, last.level
        for trial in sorted(self._fitting, key=lambda one: -one.saved):
            if trial.saved < _LESS * last.saved:
                last = trial
                yield last.candidate, last.level
        below = [level for level in last.candidate.levels if level < last.level]
        yield from ((last.candidate, level) for level in reversed(below))

    def frontier(self, chosen: Trial, candidates: Sequence[Candidate], report: Part) -> list[Trial]:
        """What the others cost at the bytes that the chosen one saves, and it at other levels."""
        confidence = self.budget.confidence
        levels = list(chosen.candidate.levels)
        place = levels.index(chosen.level)
        around = [levels[p] for p in range(place - 4, place + 5, 2) if 0 <= p < len(levels)]
        trials = [
            self.trial(chosen.candidate, level, report, confidence)
            for level in around
            if level != chosen.level
        ]
        quality = self.meter.quality(chosen.recipe, report, confidence)
        trials.append(replace(chosen, quality=quality))
        for candidate in candidates:
            if candidate.name == chosen.candidate.name:
                continue
            level = min(
                candidate.levels, key=lambda one: (abs(one - chosen.level), one), default=None
            )
            if level is None or abs(level - chosen.level) > 0.03:
                continue
            self._say(f"for comparison, {candidate.name} at {100 * level:g}%")
            trials.append(self.trial(candidate, level, report, confidence))
        return trials

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return time.monotonic() - self._start


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def lesson(budget: Budget, chosen: Trial) -> str:
    """What the search says to the papers' lesson: size for scratch-work, impact for memory."""
    wanted = "size" if budget.save == "speed" else "measured impact"
    used = {rule.score for rule in chosen.recipe.rules.values()}
    by_size = bool(used & {"magnitude", "magnitude-uniform"})
    agrees = by_size == (budget.save == "speed")
    rule = "left out per token by size" if budget.save == "speed" else "cut once by measured impact"
    text = f"The papers' lesson is that such parts are best {rule}. "
    if agrees:
        return text + f"The search agrees: it chose by {wanted}."
    return text + (
        f"The search contradicts it here: by {', '.join(sorted(used))} more was saved within the"
        " budget."
    )


def as_rows(trials: Sequence[Trial], chosen: Trial) -> list[Mapping[str, Any]]:
    """Trials as rows of a table."""
    return [
        {
            "candidate": trial.candidate.name,
            "level": trial.level,
            "saved": trial.saved,
            "ratio": trial.quality.ratio,
            "ratio_low": trial.quality.ratio_low,
            "ratio_high": trial.quality.ratio_high,
            "lost": trial.quality.lost,
            "lost_high": trial.quality.lost_high,
            "chosen": trial.candidate.name == chosen.candidate.name and trial.level == chosen.level,
        }
        for trial in trials
    ]
