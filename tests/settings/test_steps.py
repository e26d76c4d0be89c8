"""The registry of steps: what the workflow gives, and what `keepset verify` compares with."""

import subprocess
import sys
from pathlib import Path

import pytest

from keepset import settings
from keepset.errors import ConfigError
from keepset.rules.kinds import evaluations
from keepset.run import provenance
from keepset.settings.figures import FIGURES
from keepset.settings.steps import all_steps

ROOT = Path(__file__).parents[2]
WILDCARDS = {"model": "relu", "corpus": "wiki", "task": "recall", "specimen": "relu"}


@pytest.fixture(scope="module")
def embedded():
    return settings.load(ROOT / "config.yaml")


def given(config, rule):
    return all_steps()[rule].given(config, {**WILDCARDS, "choice": "causal"})


@pytest.mark.parametrize("rule", ["evaluate_dynamic", "benchmark_kernels", "benchmark_model"])
def test_records_know_which_kernels_were_chosen(embedded, rule):
    chosen = settings.Kernels(ffn="torch", scan="mamba-ssm")
    changed = embedded.model_copy(update={"kernels": chosen})
    after, before = (given(config, rule) for config in (changed, embedded))
    run = after if rule == "benchmark_kernels" else after["run"]
    assert run["kernels"] == {"ffn": "torch", "scan": "mamba-ssm", "state": "auto"}
    assert after != before


def test_kinds_and_figures_bring_their_rules():
    rules = {evaluation.rule for _, evaluation in evaluations()}
    rules |= {f"draw_{name}" for name in FIGURES} | {"draw_losses_training"}
    assert rules < set(all_steps())


def test_the_code_behind_a_step_is_there():
    for step in all_steps().values():
        assert step.code is None or provenance.code_hash(step.code)


def test_a_training_is_not_repeated_when_code_changes():
    without = {rule for rule, step in all_steps().items() if step.code is None}
    assert without == {"prepare_training", "train_specimen"}


def test_only_what_prepares_may_reach_the_network():
    network = {rule for rule, step in all_steps().items() if step.network}
    assert network == {
        f"prepare_{name}" for name in ("model", "corpus", "task", "harness", "training")
    }


def test_a_dial_is_given_with_its_choice(embedded):
    rules = given(embedded, "evaluate_state_windowed")["rules"]
    assert (rules["kind"], rules["part"], rules["choice"]) == ("state", "windowed", "causal")
    assert rules["grid"] == embedded.state.windowed.model_dump()


@pytest.mark.parametrize(
    ("section", "rule"), [("state", "evaluate_state"), ("training", "train_specimen")]
)
def test_a_section_that_is_missing_is_named(embedded, section, rule):
    without = embedded.model_copy(update={section: None})
    with pytest.raises(ConfigError, match=f"{section}: this section is missing"):
        given(without, rule)


def test_claims_name_the_penalised_models_that_take_part(embedded):
    assert given(embedded, "judge_claims")["settings"]["l1"] == ["relu-l1"]
    alone = embedded.model_copy(update={"only": ["swiglu"]})
    assert given(alone, "judge_claims")["settings"]["l1"] == []


def test_nothing_heavy_is_imported():
    """The workflow imports it at every start."""
    code = (
        "import sys, keepset.settings.steps, keepset.settings.outputs;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["tables", "significance", "claims", "publish", "drawing"])
def test_steps_on_tables_import_no_model(module):
    """Where jobs do not share their imports, each pays for its own."""
    code = (
        f"import sys, keepset.steps.{module};"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
