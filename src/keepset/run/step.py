"""Run one step of the study: a function, called with a job's files and settings by name."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from keepset.run.job import job
from keepset.run.record import Work, recording
from keepset.run.timing import Start, timed


def run_step(work: Work, start: Start | None = None) -> None:
    """Run a job, with its log, its record and its timing.

    Args:
        work: The job. Of its parameters, `step` says which function runs, whether it may reach the
            network, and what it writes without naming it; `settings` is what the function is told.
        start: When it began; now, if left out.
    """
    start = start or Start(time.monotonic())
    step = work.params["step"]
    # Loaded first: `job` limits the threads of torch, where torch is there.
    function = load(step["run"])
    beside = [Path(next(iter(work.output))).with_name(name) for name in step["beside"]]
    setting = job(work.log[0], work.threads, step["network"])
    with setting, timed(work, start), recording(work, beside):
        function(**arguments(function, work))


def run_forked(request: tuple[Work, float, float], shared_s: float) -> None:
    """`run_step` in a fork of the warm process (`keepset.run.warm.hand_over`).

    `request` is the job, and `time.monotonic()` and the seconds of CPU when it was handed over.
    """
    work, clock_s, cpu_s = request
    run_step(work, Start(clock_s, cpu_s + shared_s))


def load(name: str) -> Callable[..., None]:
    """The function "module:name"."""
    module, _, function = name.partition(":")
    loaded: Callable[..., None] = getattr(importlib.import_module(module), function)
    return loaded


def arguments(function: Callable[..., None], work: Work) -> dict[str, Any]:
    """The keyword arguments that a job calls its function with: its settings and its files.

    Files with names are passed by name; or all in one mapping, to functions with a parameter
    `inputs` or `outputs`. Where none has a name, `inputs` is the list of what is read, and `output`
    the first file that is written.
    """
    parameters = inspect.signature(function).parameters
    inputs, outputs = _named(work.input), _named(work.output)
    if "inputs" in parameters:
        inputs = {"inputs": inputs or list(work.input)}
    if "outputs" in parameters:
        outputs = {"outputs": outputs}
    elif not outputs:
        outputs = {"output": next(iter(work.output))}
    return {**inputs, **outputs, **work.params["settings"]}


def _named(files: Any) -> dict[str, Any]:
    """Name -> path, or list of paths."""
    items: Iterable[tuple[str, Any]] = files.items()
    return {name: paths if isinstance(paths, str) else list(paths) for name, paths in items}
