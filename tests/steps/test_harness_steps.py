"""Tasks of the harness in a study: from a configuration to paired tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from keepset import settings, text
from keepset.analyse.significance import test_significance as compare_with_dense
from keepset.errors import KeepsetError, TextError
from keepset.files import store
from keepset.models import owner_of
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import write_recipe
from keepset.settings.steps import all_steps
from keepset.steps.activations import cache_activations
from keepset.steps.common import Run, load
from keepset.steps.evaluation import evaluate_capability
from keepset.steps.harness import evaluate_harness, prepare_harness
from keepset.steps.prepare import prepare_model, tokenize_corpus
from written_tasks import ITEMS, write

ROOT = Path(__file__).parents[2]
NAMES = {"model": "m", "corpus": "c", "task": "endings"}


class Study:
    """A prepared tiny model, its activations, and tasks of the harness."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, tasks = folder, write(folder / "harness")
        embedded = yaml.safe_load((ROOT / "config.yaml").read_text())
        own = {"kind": "harness", "path": str(tasks)}
        self.config = settings.from_mapping(
            {
                **embedded,
                **dict.fromkeys(("state", "expert", "input", "budget", "slim")),
                **dict.fromkeys(("specimens", "training", "benchmark")),
                "dtype": "float32",
                "models": {"m": {"path": str(checkpoint), "bos": True, "sites": ["ffn"]}},
                "corpora": {"c": {"text": {"path": "nowhere"}}},
                "tasks": {name: {**own, "name": name} for name in ("endings", "choices")},
                "text": {**embedded["text"], "specimen_corpora": None},
                "capability": {**embedded["capability"], "corpus": "c", "skilled_only": False},
            }
        )
        self.model, self.blocks = folder / "model.json", folder / "blocks.safetensors"
        prepare_model("m", self.given("prepare_model")["source"], self.model)
        rows = [(part, 0, "The river runs. " * 9) for part in ("calibration", "evaluation")]
        table = pd.DataFrame(rows, columns=["split", "document", "text"])
        table.to_parquet(folder / "corpus.parquet")
        lengths = {"block": 16, "calibration_tokens": 64, "evaluation_tokens": 64}
        cutting = {"sampling": "documents", "sameness_tokens": None, "factors": [], "seed": 0}
        tokenize_corpus("c", folder / "corpus.parquet", self.model, lengths, cutting, self.blocks)
        self.sets = folder / "activations.safetensors"
        cache_activations(
            self.model, self.blocks, output=self.sets, **self.given("cache_activations")
        )

    def given(self, rule: str, **names: str) -> dict[str, Any]:
        """What the step of a rule is told."""
        return all_steps()[rule].given(self.config, {**NAMES, **names})

    def evaluate(self, task: str) -> pd.DataFrame:
        output = self.folder / f"{task}.parquet"
        evaluate_harness(
            model=self.model,
            sets=[self.sets],
            passages=self.prepare(task),
            blocks=self.blocks,
            output=output,
            **self.given("evaluate_harness", task=task),
        )
        return pd.read_parquet(output)

    def prepare(self, task: str) -> Path:
        output = self.folder / f"{task}.jsonl"
        prepare_harness(**self.given("prepare_harness", task=task), output=output)
        return output


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Study:
    return Study(tmp_path_factory.mktemp("study"), tiny_checkpoint)


def test_answers_are_those_of_the_same_passages_as_a_task_of_ours(
    study: Study, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    table = study.evaluate("endings")
    assert set(table["method"]) == {"dense", "static", "dynamic", "windowed"}
    items = [
        text.Item(number, "endings", question, f" {choices[0]}")
        for number, (question, choices, _) in enumerate(ITEMS)
    ]
    text.save_items(items, study.folder / "ours.jsonl")
    given = study.given("evaluate_harness")
    del given["task"]
    evaluate_capability(
        study.folder / "ours.jsonl", output=study.folder / "ours.parquet",
        model=study.model, blocks=study.blocks, sets=[study.sets], **given,
    )  # fmt: skip
    ours = pd.read_parquet(study.folder / "ours.parquet")
    pd.testing.assert_frame_equal(table, ours)
    facts = json.loads(store.sidecar(study.folder / "endings.parquet").read_text())
    assert facts["lm_eval"] == "0.4.13"


def test_multiple_choice_is_paired_with_dense(study: Study) -> None:
    table = study.evaluate("choices")
    assert (table.groupby(["method", "window", "choice"])["item"].count() == len(ITEMS)).all()
    assert table["logprob"].isna().all()
    assert table["n_facts"].isna().all()
    nothing = pd.DataFrame()
    tests = compare_with_dense(nothing, table, study.config.statistics, nothing)["capability"]
    assert tests["p_holm"].notna().sum() == len(tests) - 1
    sums = table.groupby(["method", "window", "choice"], sort=False)["correct"].mean()
    assert tests["accuracy"].tolist() == sums.tolist()


def test_a_model_without_the_skill_is_run_dense_alone(study: Study) -> None:
    capability = study.config.capability.model_copy(update={"skilled_only": True})
    skilled_only = study.config.model_copy(update={"capability": capability})
    skill = all_steps()["evaluate_harness"].given(skilled_only, {**NAMES, "task": "choices"})
    assert skill["skill"] == {"confidence": 0.95, "margin": 0.05}
    output = study.folder / "dense.parquet"
    evaluate_harness(
        model=study.model,
        sets=[study.sets],
        passages=study.prepare("choices"),
        blocks=study.blocks,
        output=output,
        **{**skill, "skill": {"confidence": 0.95, "margin": 0.99}},
    )
    table = pd.read_parquet(output)
    assert table["method"].tolist() == ["dense"] * len(ITEMS)
    assert table["correct"].any()


def recipe_of(study: Study, path: Path, **changes: Any) -> Path:
    """A recipe of the study's model: a tenth of every FFN's neurons is kept."""
    loaded = load(study.model, Run("cpu", "float32"))
    rules = {site.key: Rule("magnitude", 0.9, 1) for site in loaded.runner.sites_of("ffn")}
    owner = owner_of(loaded.runner.model, "m")
    own = {"model": owner, "bos": loaded.info["bos"], "found": {"sparsity": 0.9}}
    write_recipe(Recipe(rules, **{**own, **changes}), path)
    return path


@pytest.mark.parametrize("task", ["choices", "endings"])
def test_tasks_run_under_recipes(study: Study, task: str) -> None:
    path = recipe_of(study, study.folder / "most.yaml")
    given = study.given("evaluate_harness", task=task)
    passages, output = study.prepare(task), study.folder / "recipes.parquet"
    files = {"model": study.model, "blocks": study.blocks, "sets": [study.sets]}
    evaluate_harness(passages=passages, output=output, **given, **files, recipes=[path])
    table = pd.read_parquet(output)
    rows = table[table["site"] == "all"]
    assert set(rows["score"]) == {"most"}
    assert (rows[["method", "sparsity", "window"]] == ["dynamic", 0.9, "1"]).all(axis=None)
    rule = table[(table["site"] == "ffn") & (table["method"] == "dynamic")]
    assert rows["correct"].tolist() == rule["correct"].tolist()
    nothing = pd.DataFrame()
    tests = compare_with_dense(nothing, table, study.config.statistics, nothing)["capability"]
    assert len(tests[(tests["site"] == "all") & tests["p_holm"].notna()]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "other", "weights": "abc"}}, "the recipe belongs to other"),
        ({"bos": 250}, "made with the BOS token 250"),
    ],
)
def test_recipes_of_others_are_refused_by_name(
    study: Study, changes: dict[str, Any], message: str
) -> None:
    path = recipe_of(study, study.folder / "other.yaml", **changes)
    given = study.given("evaluate_harness")
    files = {"model": study.model, "blocks": study.blocks, "sets": [study.sets]}
    with pytest.raises(KeepsetError, match=f"capability.recipes: .*other.yaml: .*{message}"):
        evaluate_harness(
            passages=study.prepare("endings"), output=study.folder / "none", **given, **files,
            recipes=[path],
        )  # fmt: skip


def test_a_task_that_changed_is_not_run(study: Study) -> None:
    study.prepare("choices")
    data = study.folder / "harness/items.jsonl"
    before = data.read_text()
    data.write_text(before.replace("king", "queen"))
    arguments = study.given("evaluate_harness", task="choices")
    try:
        with pytest.raises(TextError, match=r"tasks.choices: .*run the rule prepare_harness again"):
            evaluate_harness(study.folder / "choices.jsonl", output="unused", **arguments)
    finally:
        data.write_text(before)
