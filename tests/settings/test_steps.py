"""Settings of every step: what `keepset verify` compares records with."""

import re
from pathlib import Path

import pytest

from keepset import settings
from keepset.settings import steps

ROOT = Path(__file__).parents[2]
RULES = {
    rule: body
    for file in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for rule, body in re.findall(
        r"^rule (\w+):\n(.*?)(?=^\S|\Z)", file.read_text(encoding="utf-8"), re.M | re.S
    )
    if "script:" in body
}
WILDCARDS = {"model": "relu", "corpus": "wiki", "task": "recall", "specimen": "relu"}


@pytest.fixture(scope="module")
def embedded():
    return settings.load(ROOT / "config.yaml")


def test_finds_the_rules():
    assert {"prepare_model", "judge_claims", "benchmark_model"} <= set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_that_runs_a_script_is_known_by_its_parameters(embedded, rule):
    section = re.search(r"^    params:\n((?:^ {8}.*\n)+)", RULES[rule], re.M)
    given = set(re.findall(r"^ {8}(\w+)=", section[1], re.M)) if section else set()
    found = steps.step_settings(embedded, rule, WILDCARDS)
    assert found is not None
    assert set(found) == given - {"code"}


@pytest.mark.parametrize("rule", ["evaluate_dynamic", "benchmark_kernels", "benchmark_model"])
def test_records_know_which_kernels_were_chosen(embedded, rule):
    chosen = settings.Kernels(ffn="torch", scan="mamba-ssm")
    changed = embedded.model_copy(update={"kernels": chosen})
    found, before = (steps.step_settings(config, rule, WILDCARDS) for config in (changed, embedded))
    place = found if rule == "benchmark_kernels" else found["run"]
    assert place["kernels"] == {"ffn": "torch", "scan": "mamba-ssm", "state": "auto"}
    assert found != before


def test_an_unknown_rule_has_none(embedded):
    assert steps.step_settings(embedded, "brew_coffee", {}) is None


def test_claims_name_the_penalised_models_that_take_part(embedded):
    assert steps.claims_settings(embedded)["l1"] == ["relu-l1"]
    alone = embedded.model_copy(update={"only": ["swiglu"]})
    assert steps.claims_settings(alone)["l1"] == []
