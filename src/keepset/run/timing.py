"""What a job took: seconds, CPU, memory, and how much of it went before its work began."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from keepset.errors import RecordError
from keepset.files import store
from keepset.run.record import Work, study_folder

FOLDER = "benchmarks"
"""Where the timings of a study are, inside its folder of results."""

_MEASURED = ["s", "cpu_s", "startup_s", "max_rss_mb"]
_MB = 1024**2 if sys.platform == "darwin" else 1024  # of what the system counts memory in


@dataclass(frozen=True)
class Start:
    """When a job began.

    Attributes:
        clock_s: `time.monotonic()` then.
        cpu_s: Seconds of CPU spent on it by other processes than the one that does its work.
    """

    clock_s: float
    cpu_s: float = 0.0


@contextmanager
def timed(work: Work, start: Start) -> Iterator[None]:
    """Time a job whose work begins now, and write `timing_path` if it succeeds."""
    startup_s = start.cpu_s + time.process_time()
    yield
    times = os.times()
    cpu_s = start.cpu_s + time.process_time() + times.children_user + times.children_system
    row = {
        "rule": work.rule,
        **dict(work.wildcards.items()),
        "s": f"{time.monotonic() - start.clock_s:.3f}",
        "cpu_s": f"{cpu_s:.3f}",
        "startup_s": f"{startup_s:.3f}",
        "max_rss_mb": f"{_largest_memory_mb():.1f}",
    }
    with store.replacing(timing_path(work)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)


def _largest_memory_mb() -> float:
    """Of this process or one of its children; NaN where the system does not tell."""
    if resource is None:
        return math.nan
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in whose) / _MB


def timing_path(work: Work) -> Path:
    """Where a job's timing is: `benchmarks/RULE.tsv`, or `benchmarks/RULE/WILDCARDS.tsv`."""
    folder = study_folder(next(iter(work.output))) / FOLDER
    names = [value for _, value in work.wildcards.items()]
    return folder / work.rule / f"{'.'.join(names)}.tsv" if names else folder / f"{work.rule}.tsv"


def read(folder: str | Path) -> pd.DataFrame:
    """The timings of a study's jobs.

    Args:
        folder: `results/<study>`.

    Returns:
        A row per job: rule, its wildcards, s (seconds from its start to its end), cpu_s (seconds of
        CPU), startup_s (of them, before its work began: interpreter and imports; the first job that
        a warm process took bears that process's imports), max_rss_mb (largest memory, MiB).

    Raises:
        RecordError: there are none.
    """
    files = sorted(Path(folder, FOLDER).rglob("*.tsv"))
    tables = [pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False) for file in files]
    # Timings of earlier versions do not know the start-up.
    tables = [table for table in tables if set(_MEASURED) <= set(table.columns)]
    if not tables:
        raise RecordError(f"{folder}: no timings; give results/<study> of a study that was run")
    joined = pd.concat(tables, ignore_index=True).fillna("")
    names = [name for name in joined.columns if name not in _MEASURED]
    return joined[names + _MEASURED].astype(dict.fromkeys(_MEASURED, float))


def report(folder: str | Path, as_csv: bool = False) -> str:
    """What `keepset times` prints: `text`, or every job as CSV (see `read`)."""
    timings = read(folder)
    return timings.to_csv(index=False) if as_csv else text(timings)


def summary(timings: pd.DataFrame) -> pd.DataFrame:
    """Seconds of CPU by rule and model, largest first.

    Args:
        timings: See `read`.

    Returns:
        A row per rule, and one for all: jobs, a column per model (none: jobs of no single model),
        all, startup (of all), longest (seconds of the longest job), max_rss_mb.
    """
    models = timings["model"] if "model" in timings else pd.Series("", timings.index)
    named = timings.assign(model=models.replace("", "none"))
    by_model = named.pivot_table(
        "cpu_s", "rule", "model", "sum", fill_value=0, margins=True, margins_name="all"
    )
    by_model = by_model.sort_values("all", axis=1, ascending=False)
    columns = [name for name in by_model.columns if name != "all"] + ["all"]
    everything = timings.assign(rule="all")
    others = (
        pd.concat([timings, everything])
        .groupby("rule")
        .agg(startup=("startup_s", "sum"), longest=("s", "max"), max_rss_mb=("max_rss_mb", "max"))
    )
    jobs = pd.concat([timings, everything]).groupby("rule").size().rename("jobs")
    table = pd.concat([jobs, by_model[columns], others], axis=1)
    order = table.drop(index="all").sort_values("all", ascending=False).index
    return table.loc[[*order, "all"]].rename_axis("rule").reset_index()


def text(timings: pd.DataFrame) -> str:
    """Where the CPU time of a study went, and the share of the start-up."""
    table = summary(timings).to_string(index=False, float_format="{:.0f}".format)
    total, startup = timings["cpu_s"].sum(), timings["startup_s"].sum()
    return (
        f"Seconds of CPU by rule and model; longest: of one job, start to end.\n\n{table}\n\n"
        f"{len(timings)} jobs: {timings['s'].sum():.0f} s, of CPU {total:.0f} s; start-up"
        f" {startup:.0f} s of it ({startup / total:.1%}); largest memory"
        f" {timings['max_rss_mb'].max():.0f} MiB\n"
    )
