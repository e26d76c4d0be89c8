"""Choose between paths that give the same answer by timing them, once per machine and shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

ROUNDS = 7

Candidate = Callable[[int], Any]
"""Runs a path once; gets a number that differs from run to run, to take other weights by."""

_timed: dict[Hashable, dict[str, float]] = {}
_forced: list[str] = []
_spent = 0.0


@contextmanager
def forcing(*names: str) -> Iterator[None]:
    """Take these paths, where they are among the candidates, without timing any."""
    _forced[:0] = names
    try:
        yield
    finally:
        del _forced[: len(names)]


def forced(candidates: Mapping[str, Any]) -> str | None:
    """The candidate that `forcing` asks for, if any."""
    return next((name for name in _forced if name in candidates), None)


def clock() -> float:
    """Seconds on the clock that paths are compared by.

    Of one thread on a CPU it is the thread's own time, so that what other processes take from a
    busy machine does not count; else it is the time of day, once a GPU is done.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.thread_time() if clock_name() == "CPU time" else time.perf_counter()


def clock_name() -> str:
    """What `clock` reads: "CPU time" or "wall-clock time"."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return "CPU time" if alone else "wall-clock time"


def fastest(key: Hashable, candidates: Mapping[str, Candidate], rounds: int = ROUNDS) -> str:
    """The name of the fastest candidate, by `times`; of equals the first wins."""
    if (name := forced(candidates)) is not None:
        return name
    found = times(key, candidates, rounds)
    return min(candidates, key=found.__getitem__)


def times(
    key: Hashable, candidates: Mapping[str, Candidate], rounds: int = ROUNDS
) -> Mapping[str, float]:
    """The seconds that each candidate takes.

    Candidates take turns, so that a busy machine slows all of them, and count by their best round,
    the one that was disturbed least. The first round warms up. A key is timed once per process.

    Args:
        key: What the times hold for: shape, rows, share kept, dtype, device, threads.
        candidates: At least one, by name.
        rounds: Rounds that count.
    """
    global _spent
    if key not in _timed:
        start = clock()
        _timed[key] = _time(candidates, rounds)
        _spent += clock() - start
    return _timed[key]


def spent() -> float:
    """Seconds spent on measurements so far, for those who time what contains one."""
    return _spent


def _time(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(candidates, float("inf"))
    # A caller may not be in inference mode; the paths under test always are.
    with torch.inference_mode():
        for at in range(rounds + 1):
            for place, (name, run) in enumerate(candidates.items()):
                # Never what the candidate before has just brought into the cache.
                took = _seconds(run, at * len(candidates) + place)
                if at:
                    best[name] = min(best[name], took)
    return best


def _seconds(run: Candidate, at: int) -> float:
    start = clock()
    run(at)
    return clock() - start


def measured() -> dict[str, dict[str, float]]:
    """Every crossover measured so far, for the record: key -> candidate -> best milliseconds."""
    return {
        " ".join(map(str, key)) if isinstance(key, tuple) else str(key): {
            name: round(1e3 * took, 4) for name, took in best.items()
        }
        for key, best in _timed.items()
    }


def forget() -> None:
    """Drop every measurement."""
    _timed.clear()
