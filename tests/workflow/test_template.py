"""The profile for other schedulers, with a scheduler that is a shell script: make test-cluster."""

from __future__ import annotations

import os

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

QSUB = """#!/bin/sh
# Says what it was asked for, runs the job at once, and gives it a number.
echo "$@" >> {folder}/asked
for last; do :; done
sh "$last" > {folder}/job.log 2>&1 &
echo $!
"""


def test_jobs_go_through_the_submit_command_with_their_resources(small_study, tmp_path):
    for name, content in {"qsub": QSUB, "qdel": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(content.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    small_study.environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    try:
        small_study.run(
            "results/tiny/llama/letters/blocks.safetensors",
            *("--workflow-profile", "profiles/cluster-template", "--latency-wait", "5"),
        )
    finally:
        small_study.environment.clear()
    assert (small_study.results() / "llama/letters/blocks.safetensors").exists()
    (asked,) = (tmp_path / "asked").read_text().splitlines()  # the prepare rules are local
    assert "-pe smp 1 -l h_vmem=2000M -l h_rt=0:30:0 -l gpu=0" in asked
