"""`keepset harness`: lm_eval's command line, with the model keepset, on a specimen."""

from __future__ import annotations

import builtins
import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from keepset import find_sites, load, text
from keepset.cli import main
from keepset.decode.generate import parse_keep
from keepset.measure.runner import Runner
from written_tasks import ITEMS, write

SPECIMEN = Path(__file__).parents[2] / "specimens/relu"


def by_runner(keep: str | None) -> pd.DataFrame:
    """The answers of our own runner to the items of `endings`."""
    model, tokenizer = load(SPECIMEN, dtype="float32", device="cpu")
    items = [
        text.Item(number, "endings", question, f" {choices[0]}")
        for number, (question, choices, _) in enumerate(ITEMS)
    ]
    encoded = text.encode_items(items, tokenizer)
    rule = None if keep is None else parse_keep(keep)
    return Runner(model, find_sites(model)).last_words(encoded, rule)


def test_the_command_line_of_the_harness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("lm_eval")  # the command sets it up for a process of its own
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, copy.copy(getattr(logger, name)))
    folder, given = write(tmp_path / "tasks"), list(sys.argv)
    arguments = f"pretrained={SPECIMEN},dtype=float32,keep=dynamic:0.9"
    status = main(
        [
            *("harness", "run", "--model", "keepset", "--model_args", arguments),
            *("--device", "cpu", "--tasks", "endings,texts", "--include_path", str(folder)),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ]
    )
    assert status == 0
    assert sys.argv == given
    assert "|endings|" in capsys.readouterr().out
    (samples,) = (tmp_path / "out").rglob("samples_endings_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = [row["filtered_resps"][0] for row in sorted(rows, key=lambda row: row["doc_id"])]
    expected = by_runner("dynamic:0.9")
    logprobs = [float(logprob) for logprob, _ in answers]
    assert logprobs == pytest.approx(expected["logprob"].tolist(), rel=1e-9)
    assert [greedy in (True, "True") for _, greedy in answers] == expected["correct"].tolist()
    dense = by_runner(None)["logprob"].to_numpy()
    assert abs(dense - logprobs).max() > 0.01  # the rule did hold
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["keep"] == "dynamic magnitude 0.9"


def test_without_lm_eval_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ImportError("No module named 'lm_eval'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["harness", "ls", "tasks"]) == 1
    assert "`pip install -r requirements-harness.txt`" in capsys.readouterr().err
