"""A small study through profiles/slurm, on a SLURM that is started for it: make test-cluster."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from slurm_on_loopback import Slurm

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

PROFILE = ("--workflow-profile", "profiles/slurm", "--jobs", "2")
UNDER_SLURM = {
    *("cache_activations", "evaluate_dense", "evaluate_static", "evaluate_dynamic"),
    *("evaluate_windowed", "correlate_size_impact"),
}


@pytest.fixture(scope="module")
def slurm():
    with Slurm() as running:
        yield running


def tables(study):
    """Every table of results, by path."""
    found = {path.relative_to(study.results()): path for path in study.results().rglob("*.parquet")}
    return {name: path.read_bytes() for name, path in found.items()} | {
        path.relative_to(study.results()): path.read_bytes()
        for path in (study.results() / "tables").glob("*.csv")
    }


def wait_for(found, process, what, seconds=900):
    """Call `found` until it returns something."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert process.poll() is None, f"{what}: {process.communicate()}"
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return result


def test_a_study_under_slurm_killed_and_resumed_equals_the_local_one(small_study, slurm):
    small_study.run("tables")
    local = tables(small_study)
    assert len(local) > 10
    shutil.rmtree(small_study.folder / "results")
    shutil.rmtree(small_study.folder / ".snakemake")

    def running(rule, besides=()):
        return next(
            (
                job
                for job in slurm.jobs()
                if rule in job.comment and job.state == "RUNNING" and job.number not in besides
            ),
            None,
        )

    # A job is killed as the kernel kills it when memory runs out; it comes back with twice as much.
    process = small_study.start("tables", *PROFILE)
    try:
        first = wait_for(lambda: running("cache_activations"), process, "the first attempt")
        slurm.kill(first)
        second = wait_for(
            lambda: running("cache_activations", [first.number]), process, "the second attempt"
        )
        # Then Snakemake itself is killed, and its jobs with it.
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert (first.memory, second.memory) == ("3500M", "7000M")
    slurm.kill(second)

    done = small_study.run("tables", *PROFILE)
    assert "Error" not in done.stderr
    assert tables(small_study) == local

    completed = [job for job in slurm.jobs() if job.state == "COMPLETED"]
    for rule in UNDER_SLURM:
        assert [job for job in completed if rule in job.comment], rule
    # Short jobs are submitted together; what touches the network stays on this node.
    alone = {job.comment.removeprefix("rule_") for job in slurm.jobs()}
    for name in ("tokens", "finish"):
        assert any(comment.startswith(name) for comment in alone), name
    for rule in ("prepare_", "tokenize_", "join_", "test_", "write_"):
        assert not any(comment.startswith(rule) for comment in alone), rule
    rows = pd.read_parquet(small_study.results() / "llama/letters/perplexity.parquet")
    assert set(rows["method"]) == {"dense", "static", "dynamic", "windowed"}
    assert Path("/etc/slurm/slurm.conf").exists()
