"""Every rule of the workflow fits the function that it runs."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
import yaml

from conftest import ROOT
from keepset import settings
from keepset.run.step import arguments, load
from keepset.settings.steps import all_steps

# The names of the files of every rule, and what it gives its step.
ASKING = """
include: "Snakefile"

import json


def described(rule):
    parameters = dict(rule.params.items())
    files = {"input": rule.input, "output": rule.output}
    named = {side: {name: "file" for name, _ in some.items()} for side, some in files.items()}
    return {**named, "run": parameters["step"]["run"], "code": parameters.get("code")}


DESCRIBED = {rule.name: described(rule) for rule in workflow.rules if rule.script}
Path("rules.json").write_text(json.dumps(DESCRIBED))
"""
WILDCARDS = {"model": "relu", "corpus": "wiki", "task": "recall", "specimen": "relu"}
WILDCARDS |= {"budget": "0.03"}

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


class Files(list):
    """The files of a rule; some have names."""

    def __init__(self, named):
        super().__init__(["file"])
        self.items = named.items


def test_every_rule_calls_its_step_with_the_arguments_that_it_takes(small_study):
    embedded = yaml.safe_load((ROOT / "config.yaml").read_text())
    small_study.config = {**embedded, "specimens": str(ROOT / "specimens")}
    (small_study.folder / "Asking").write_text(ASKING)
    small_study.run("all", "--dry-run", "--quiet", "--snakefile", "Asking")
    rules = json.loads((small_study.folder / "rules.json").read_text())
    config, steps = settings.from_mapping(small_study.config), all_steps()
    # Of loss curves, one rule draws those that are trained here, one those that were shipped.
    assert set(rules) == set(steps) - {"draw_loss_curve"}
    for name, rule in rules.items():
        given = steps[name].given(config, {**WILDCARDS, "choice": "causal"})
        work = SimpleNamespace(
            input=Files(rule["input"]), output=Files(rule["output"]), params={"settings": given}
        )
        function = load(rule["run"])
        inspect.signature(function).bind(**arguments(function, work))
        assert json.loads(json.dumps(given)) == given
        assert rule["run"] == steps[name].run
        assert (rule["code"] or "").partition(":")[0] == (steps[name].code or "")
