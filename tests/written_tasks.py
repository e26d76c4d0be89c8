"""Tasks in the harness's form, written to a folder: YAML files and their items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ITEMS = [
    ("The river is", ["long", "a stone that was"], 0),
    ("The king of the", ["land", "sea and of all the hills"], 1),
    ("In", ["the", "one thousand"], 0),
    ("A ship went out one morning in the winter to the", ["sea", "mill"], 1),
    ("She said to him that", ["he", "they all were"], 0),
]
FORMS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": ["acc", "acc_norm", "f1"],
    },
    "endings": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{choices[0]}}",
        "metric_list": ["perplexity", "acc"],
    },
    "stories": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": ["exact_match", "bleu"],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
    },
}
"""Task -> what it has beside its items, which are the same for all; names of metrics alone."""


def write(folder: Path) -> Path:
    """Write all tasks, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q, "choices": choices, "answer": n} for q, choices, n in ITEMS]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, form in FORMS.items():
        better = {"aggregation": "mean", "higher_is_better": True}
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            **form,
        }
        if "metric_list" in form:
            content["metric_list"] = [{"metric": one, **better} for one in form["metric_list"]]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder
