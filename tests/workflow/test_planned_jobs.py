"""`keepset plan` and Snakemake count the same jobs."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter

import pytest
import yaml

from conftest import ROOT, counted, lay_out, small
from keepset import plan, settings
from keepset.plan import sizes

# What Snakemake asks of a scheduler for a job, at its first and its second attempt.
ASKING = """
include: "Snakefile"

import json

from snakemake.iocontainers import Wildcards

NAMES = Wildcards(fromdict={"model": "opt-2.7b", "corpus": "c4"})
ASKED = [
    dict(rules.evaluate_dense.rule.expand_resources(NAMES, [], attempt).items())
    for attempt in (1, 2)
]
KEYS = ("mem_mb", "runtime", "gpu", "gpu_mb")
Path("asked.json").write_text(json.dumps([{key: one[key] for key in KEYS} for one in ASKED]))
"""

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def test_the_jobs_of_the_embedded_study(small_study):
    embedded = yaml.safe_load((ROOT / "config.yaml").read_text())
    small_study.config = {**embedded, "specimens": str(ROOT / "specimens")}
    done = small_study.run("--dry-run", "--quiet", "rules")
    config = settings.from_mapping(small_study.config)
    expected = Counter(job.rule for job in plan.jobs(config))
    assert expected["evaluate_dense"] == 10  # one model on three corpora, seven on one
    assert counted(done) == expected


def test_the_papers_study_takes_the_place_of_the_embedded_one(small_study):
    shutil.copytree(ROOT / "config", small_study.folder / "config", dirs_exist_ok=True)
    paper = settings.load(ROOT / "config/paper.yaml")
    (small_study.folder / "Asking").write_text(ASKING)
    paper_run = ("--configfile", "config/paper.yaml")
    done = small_study.run("all", "--dry-run", "--snakefile", "Asking", *paper_run)
    planned = done.stdout
    assert set(re.findall(r"Preparing model (\S+)", planned)) == set(paper.models)
    # `keepset plan` counts the jobs that Snakemake plans, and rules ask for what it expects.
    assert counted(done) == Counter(job.rule for job in plan.jobs(paper))
    names = {"model": "opt-2.7b", "corpus": "c4"}
    expected = plan.resources(
        paper, plan.Job("evaluate_dense", names), sizes.table()["facebook/opt-2.7b"], "cuda"
    )
    first, second = json.loads((small_study.folder / "asked.json").read_text())
    # The rule states 120 minutes, and less memory.
    assert first == {**expected, "runtime": 120, "gpu": 1}
    assert second == {**first, "mem_mb": 2 * first["mem_mb"]}
    assert set(re.findall(r"Reading corpus (\S+)", planned)) == {"wikitext2", "c4", "pile"}
    wanted = small_study.planned("download", "--configfile", "config/paper.yaml")
    assert wanted == {"prepare_model", "prepare_corpus", "prepare_task", "download"}


def test_tasks_of_the_harness_have_rules_of_their_own(tmp_path, tiny_checkpoint):
    study = lay_out(tmp_path, tiny_checkpoint)
    built = {"kind": "built", "corpora": ["letters"], "items": 3}
    tasks = {"arc": {"kind": "harness", "name": "arc_easy"}, "last-word": built}
    study.config = {**small(study.config), "input": None, "tasks": tasks}
    config = settings.from_mapping(study.config)
    counts = counted(study.run("--dry-run", "--quiet", "rules"))
    assert counts == Counter(job.rule for job in plan.jobs(config))
    named = ("prepare_task", "prepare_harness", "evaluate_capability", "evaluate_harness")
    assert [counts[rule] for rule in named] == [1] * 4
    assert "prepare_harness" in study.planned("download")
