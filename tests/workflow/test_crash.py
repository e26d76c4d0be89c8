"""kill -9 at random points, and a disk that is full: make test-crash.

The next `snakemake` call goes on, and the tables are those of an undisturbed run, byte for byte.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from keepset import settings
from keepset.run.verify import verify

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("crash")]

KILLS = 12
SEED = 20261124


def tables(study):
    """The contents of every table, and of what is not one but a later step reads."""
    kept = ("*.parquet", "*.csv", "*.tex", "*.safetensors", "model.json")
    return {
        path.relative_to(study.results()): path.read_bytes()
        for pattern in kept
        for path in study.results().rglob(pattern)
        if not path.name.startswith(".")
    }


def jobs_in(folder: Path) -> list[int]:
    """The processes that run a script of the workflow in `folder`."""
    return [number for number, command in _commands(folder) if ".snakemake/scripts" in command]


def _commands(folder: Path) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").resolve() == folder.resolve():
                    yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it has ended


def rules_of(command: str) -> set[str]:
    """The rule whose script a process runs, by the log that Snakemake wrote into the script."""
    scripts = re.findall(r"\S+/\.snakemake/scripts/\S+\.py", command)
    with suppress(OSError):  # it has just ended
        return set(re.findall(r"/logs/(\w+)", Path(scripts[0]).read_text()))
    return set()


def kill_at_random(study, chance: random.Random, how: str, longest: float) -> set[str]:
    """Run, kill, and say which rules ran then; none if the run ended before it could be killed."""
    start = time.time()
    process = study.start("tables")
    # The first job waits for the imports that all share; it writes its log after them.
    while process.poll() is None and not any(
        log.stat().st_mtime > start for log in study.results().rglob("*.log")
    ):
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, longest))
    if process.poll() is not None:
        process.communicate()
        return set()
    jobs = jobs_in(study.folder)
    commands = [command for number, command in _commands(study.folder) if number in jobs]
    rules = set().union(*map(rules_of, commands))
    if how == "job" and jobs:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(chance.choice(jobs), signal.SIGKILL)
        process.communicate()
    elif how == "snakemake":
        os.kill(process.pid, signal.SIGKILL)  # its jobs go on without it
        process.wait()
        process.stdout.close()
        process.stderr.close()
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return rules or {"between two jobs"}


@pytest.fixture(scope="module")
def undisturbed(small_study):
    """The tables of a run that nothing disturbed, and the seconds that it took."""
    start = time.monotonic()
    small_study.run("tables")
    found = tables(small_study)
    assert len(found) > 20
    return found, time.monotonic() - start


def start_over(study):
    shutil.rmtree(study.results())
    shutil.rmtree(study.folder / ".snakemake")


def test_killed_at_random_points_the_tables_are_the_same(small_study, undisturbed):
    expected, seconds = undisturbed
    start_over(small_study)
    chance, killed = random.Random(SEED), []
    for number in range(10 * KILLS):
        how = ("job", "snakemake", "machine")[number % 3]
        # Long enough for a job or two to end: the kills come all along the study.
        if not (rules := kill_at_random(small_study, chance, how, seconds / 3)):
            start_over(small_study)  # it got to its end: from the start again
            continue
        killed.append(rules)
        if len(killed) == KILLS:
            break
    assert len(killed) == KILLS
    assert len(set().union(*killed)) > 3, f"the kills all came at one place: {killed}"
    while jobs_in(small_study.folder):
        time.sleep(0.1)  # those that went on without Snakemake
    small_study.run("tables")
    assert tables(small_study) == expected
    findings, _ = verify(small_study.results(), settings.load(small_study.folder / "config.yaml"))
    assert findings == []
    assert "Nothing to be done" in small_study.run("tables").stderr


def test_a_full_disk_ends_with_a_message_and_the_next_run_goes_on(small_study, undisturbed):
    expected, _ = undisturbed
    start_over(small_study)
    # A limit on the size of files stands in for the full disk. It is inherited by the jobs; the
    # activation cache is the first file that is larger.
    largest = max(len(content) for content in expected.values())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limit[1]))
    try:
        done = small_study.run("tables", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "File too large" in done.stderr
    assert not list(small_study.results().rglob(".*"))
    small_study.run("tables")
    assert tables(small_study) == expected
