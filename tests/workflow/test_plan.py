"""`keepset plan` and Snakemake count the same jobs of the embedded study."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from conftest import ROOT, counted
from keepset import plan, settings

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def test_the_jobs_of_the_embedded_study(small_study):
    embedded = yaml.safe_load((ROOT / "config.yaml").read_text())
    small_study.config = {**embedded, "specimens": str(ROOT / "specimens")}
    done = small_study.run("--dry-run", "--quiet", "rules")
    config = settings.from_mapping(small_study.config)
    expected = Counter(job.rule for job in plan.jobs(config))
    assert expected["evaluate_dense"] == 8  # one model on three corpora, five on one
    assert counted(done) == expected
