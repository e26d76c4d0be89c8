"""Tasks of EleutherAI's evaluation harness: their requests, and accuracy under keep rules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import pandas as pd

from keepset.files import store
from keepset.harness import tasks
from keepset.measure.skill import does_task
from keepset.measure.tables import answers_table
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.run.progress import Progress
from keepset.settings import Task
from keepset.steps.common import PathLike
from keepset.steps.evaluation import load_for_tasks, with_difficulty


def prepare_harness(name: str, task: Mapping[str, Any], output: PathLike) -> None:
    """Fetch the data of a task, and write what a model is asked."""
    tasks.load(name, Task.model_validate(task)).save(output)


def evaluate_harness(
    passages: PathLike,
    task: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
    skill: Mapping[str, float] | None = None,
    **model: Any,
) -> None:
    """Accuracy in a task of the harness, as `evaluate_capability` gives it for other tasks.

    Args:
        passages: What `prepare_harness` wrote; the task must still give the same.
        task: Its settings.
        skill: As in `evaluate_capability`.
        model: The arguments of `load_for_tasks`.
    """
    made = tasks.load(identity["task"], Task.model_validate(task))
    made.check(passages)
    from keepset.harness.model import HeldLM  # needs lm-eval

    loaded, keep_rules = load_for_tasks(**model)
    lm = HeldLM(loaded.runner, loaded.tokenizer)
    tokens = sum(len(lm.tok_encode(text)) for text in made.texts)
    label = f"{identity['model']} {identity['task']} capability"
    lm.progress = progress = Progress(label, tokens * len(keep_rules))

    def answers(rule: Rule | Recipe | None) -> pd.DataFrame:
        lm.rule = rule
        return made.graded(made.answers(lm))

    is_done = partial(does_task, **skill) if skill else None
    table = answers_table(answers, keep_rules, identity, is_done)
    progress.close()
    difficulty = [(None, None)] * table["item"].nunique()
    facts = {**loaded.provenance, "lm_eval": version("lm-eval")}
    store.write_table(with_difficulty(table, difficulty), output, facts)
