"""Tasks of the harness: which are taken, what is asked, and how answers are graded."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keepset.errors import ConfigError, TextError
from keepset.harness import tasks
from keepset.settings import Task
from written_tasks import ITEMS, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tasks"))


def load(folder: Path, name: str, **settings: Any) -> tasks.HarnessTask:
    task = Task.model_validate({"kind": "harness", "name": name, "path": str(folder), **settings})
    return tasks.load("mine", task)


def test_choices_are_graded_by_their_log_probabilities(folder: Path) -> None:
    made = load(folder, "choices")
    # The first choice of every item, but where a longer one is compared by its length.
    answers = [(-2.0 - n % 2, False) for n in range(2 * len(ITEMS))]
    right = [answer == 0 for *_, answer in ITEMS]
    table = made.graded(answers)
    assert table["correct"].tolist() == right
    assert table["logprob"].isna().all()
    by_length = load(folder, "choices", metric="acc_norm").graded(answers)
    per_letter = [
        max(range(2), key=lambda n: (-2.0 - n) / len(choices[n])) == answer
        for _, choices, answer in ITEMS
    ]
    assert by_length["correct"].tolist() == per_letter != right


def test_a_target_is_graded_by_whether_it_is_the_greedy_one(folder: Path) -> None:
    made = load(folder, "endings", items=3)
    assert [request.args for request in made.requests] == [
        (question, f" {choices[0]}") for question, choices, _ in ITEMS[:3]
    ]
    table = made.graded([(-1.5, True), (-2.5, False), (-3.5, True)])
    assert table.values.tolist() == [[True, -1.5], [False, -2.5], [True, -3.5]]
    # Answers of another rule take the place of these.
    assert made.graded([(-1.0, False)] * 3)["correct"].tolist() == [False] * 3


def test_generated_text_is_graded_by_exact_match(folder: Path) -> None:
    answers = ["long", "sea", "the", "sea", " he"]
    table = load(folder, "stories").graded(answers)
    assert table["correct"].tolist() == [True, False, True, True, False]
    named = load(folder, "stories", metric="exact_match,none").graded(answers)
    assert named.equals(table)


def test_what_is_asked_is_written_and_compared(folder: Path, tmp_path: Path) -> None:
    made = load(folder, "choices", items=2)
    made.save(tmp_path / "items.jsonl")
    made.check(tmp_path / "items.jsonl")
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "item": 1,
        "requests": [[ITEMS[1][0], f" {choice}"] for choice in ITEMS[1][1]],
    }
    assert made.texts[0] == "The river is long"
    with pytest.raises(TextError, match=r"tasks.mine: .* run the rule prepare_harness again"):
        load(folder, "choices", items=3).check(tmp_path / "items.jsonl")


def test_examples_stand_before_an_item(folder: Path) -> None:
    plain = load(folder, "endings")
    shown = load(folder, "endings", shots=2)
    for one, two in zip(plain.requests, shown.requests, strict=True):
        assert two.args[0].endswith(f"\n\n{one.args[0]}")
        assert two.args[0].count("\n\n") == 2
    assert [r.args for r in load(folder, "endings", shots=2).requests] == [
        r.args for r in shown.requests
    ]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("choicess", {}, r"tasks.mine.name: .* has no task choicess; do you mean choices"),
        ("zzz", {}, r"has no task zzz; `keepset harness ls tasks` lists all"),
        ("texts", {}, r"tasks.mine.metric: .* word_perplexity.* measure perplexity on a corpus"),
        ("choices", {"metric": "bleu"}, r"has no metric bleu; its metrics are acc, acc_norm, f1"),
        ("choices", {"metric": "f1"}, r"metric: f1 of item 0 is \(.*neither right \(1\) nor"),
        ("stories", {"metric": "exact_match,strict"}, r"no filter strict; its filters are none"),
    ],
)
def test_a_task_that_cannot_be_used(
    folder: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TextError, match=message):
        load(folder, name, **settings)


def test_a_metric_between_right_and_wrong_is_refused(folder: Path, tmp_path: Path) -> None:
    half = (folder / "endings.yaml").read_text() + "process_results: !function graded.half\n"
    write(tmp_path)
    (tmp_path / "endings.yaml").write_text(half)
    (tmp_path / "graded.py").write_text("def half(doc, results):\n    return {'acc': 0.5}\n")
    with pytest.raises(TextError, match=r"acc of item 0 is 0.5, neither right"):
        load(tmp_path, "endings")


def test_data_that_is_not_on_this_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(TextError, match=r"load endings: FileNotFoundError: .*items.jsonl'\nIf"):
        load(tmp_path, "endings")
    hub = (folder / "endings.yaml").read_text().replace("dataset_path: json", "dataset_path: a/b")
    (tmp_path / "endings.yaml").write_text(hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TextError, match=r"(?s)cannot load endings.*a/b.*`snakemake download` on"):
        load(tmp_path, "endings")
    with pytest.raises(TextError, match=r"tasks.mine.path: .*nowhere does not exist"):
        load(tmp_path / "nowhere", "endings")


def test_groups_are_named_as_such(folder: Path, tmp_path: Path) -> None:
    write(tmp_path)
    group = "group: both\ntask: [choices, endings]\n"
    (tmp_path / "both.yaml").write_text(group)
    with pytest.raises(TextError, match=r"both is a group of tasks; give an entry to each"):
        load(tmp_path, "both")


def test_without_lm_eval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ImportError("No module named 'lm_eval'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"tasks.mine: .* `pip install -r requirements-harness"):
        load(folder, "choices")


def test_settings_of_tasks_of_the_harness() -> None:
    assert Task.model_validate({"kind": "harness", "name": "arc_easy"}).shots is None
    for wrong in (
        {"kind": "harness"},
        {"kind": "harness", "name": "x", "corpora": ["a"]},
        {"kind": "harness", "name": "x", "source": {"path": "a"}},
        {"kind": "built", "corpora": ["a"], "metric": "acc"},
        {"kind": "recall", "corpora": ["a"], "shots": 2},
    ):
        with pytest.raises(ValidationError):
            Task.model_validate(wrong)
