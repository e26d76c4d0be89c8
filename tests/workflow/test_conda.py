"""A small study under --use-conda, in environments made for it: make test-conda."""

from __future__ import annotations

import os
import subprocess

import pytest
from local_conda import install

pytestmark = [pytest.mark.conda, pytest.mark.xdist_group("conda")]

NEEDED = {  # environment -> what its rules import
    "study": "keepset.steps.evaluation, keepset.steps.significance, keepset.steps.correlation",
    "figures": "keepset.steps.drawing, keepset.run.step",
}


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """The folder with a conda in it."""
    return install(tmp_path_factory.mktemp("conda") / "prefix")


def test_a_study_under_use_conda(small_study, conda):
    small_study.environment["PATH"] = f"{conda}{os.pathsep}{os.environ['PATH']}"
    small_study.run("tables", "results/tiny/figures/dial.png", "--use-conda")
    assert (small_study.results() / "figures/dial.png").stat().st_size > 1000
    assert (small_study.results() / "tables/perplexity.csv").read_text().count("\n") > 1

    environments = small_study.folder / ".snakemake/conda"
    made = {path: path.with_suffix("") for path in environments.glob("*.yaml")}
    assert len(made) == 2
    for definition, prefix in made.items():
        name = "study" if "torch==" in definition.read_text() else "figures"
        # A script also sees the packages of Snakemake's own Python; here nothing but its own.
        done = subprocess.run(
            [prefix / "bin/python", "-s", "-c", f"import {NEEDED[name]}"],
            env={"PYTHONPATH": str(small_study.folder / "src"), "PATH": str(prefix / "bin")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
    log = (small_study.folder / "results/tiny/records/llama/letters/dense.parquet.json").read_text()
    assert '"torch": "2.13.0' in log
    assert small_study.planned("tables", "--use-conda") == set()
