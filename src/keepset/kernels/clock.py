"""The clock that paths of one operation are compared by, and the best time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Candidate = Callable[[int], Any]
"""Runs a path once; gets a number that differs from run to run, to take other weights by."""


def taking_turns(items: Sequence[Item], call: Callable[[Item], Any]) -> Candidate:
    """Calls one item after the other, so that each reads its weights from memory."""
    return lambda number: call(items[number % len(items)])


def seconds() -> float:
    """Seconds on the clock that paths are compared by.

    Of one thread on a CPU it is the thread's own time, so that what other processes take from a
    busy machine does not count; else it is the time of day, once a GPU is done.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.thread_time() if clock_name() == "CPU time" else time.perf_counter()


def clock_name() -> str:
    """What `seconds` reads: "CPU time" or "wall-clock time"."""
    one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return "CPU time" if one_thread else "wall-clock time"


def time_rounds(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, float]:
    """The seconds that each candidate takes in its best round, the one least disturbed.

    Candidates take turns, so that a busy machine slows all of them. One more round warms up.
    """
    best = dict.fromkeys(candidates, float("inf"))
    # A caller may not be in inference mode; the paths under test always are.
    with torch.inference_mode():
        for number in range(rounds + 1):
            for place, (name, run) in enumerate(candidates.items()):
                start = seconds()
                # Never the weights that the candidate before has just brought into the cache.
                run(number * len(candidates) + place)
                took = seconds() - start
                if number:
                    best[name] = min(best[name], took)
    return best
