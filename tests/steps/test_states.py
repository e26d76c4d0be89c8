"""The state half of the study, from a prepared model to tables and a smaller checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from keepset import models, text
from keepset.errors import CacheError
from keepset.files import store
from keepset.settings import Model, State
from keepset.steps import evaluation, states

RUN = {"device": "cpu", "dtype": "float32", "batch_tokens": 64}
IDENTITY = {"study": "s", "model": "m", "origin": "specimen", "corpus": "c"}
STATIC = {"scores": ["ghost", "ghost-uniform", "magnitude", "random"], "sparsities": [0.5, 0.9]}
DIAL: dict[str, Any] = {
    "scores": ["impact"],
    "sparsities": [0.5],
    "windows": [1, 4, "sequence"],
    "choices": ["oracle", "causal"],
    "access": ["read", "write"],
}
STATE: dict[str, Any] = {
    "static": STATIC,
    "windowed": DIAL,
    "capability": {"scores": ["ghost"], "sparsities": [0.9]},
    "lengths": [1, 2, 9],
}
CHOSEN: dict[str, Any] = {"static": STATIC, "seeds": [1, 2]}
STATIC_RULES = {"kind": "state", "part": "static", "grid": STATIC, "seeds": [1, 2]}


def section() -> dict[str, Any]:
    """The section `state`, as a step gets it."""
    return State.model_validate(STATE).model_dump()


class Folder:
    """A prepared model, its blocks, and the keep sets of its states."""

    def __init__(self, path: Path, model: PreTrainedModel, tokenizer: Any) -> None:
        self.path = path
        model.save_pretrained(path / "checkpoint")
        tokenizer.save_pretrained(path / "checkpoint")
        info = models.prepare("m", Model(path=str(path / "checkpoint")), path)
        store.write_json(info, path / "model.json")
        table = pd.DataFrame(
            [(split, 0, "The quick brown fox. " * 20) for split in ("calibration", "evaluation")],
            columns=["split", "document", "text"],
        )
        cutting = text.Cutting(factors=section()["lengths"])
        blocks = text.make_blocks("c", table, tokenizer, 16, 64, 96, cutting)
        text.save_blocks(blocks, path / "blocks.safetensors")
        self.outputs = {
            "sets": path / "state.safetensors",
            "channels": path / "channels.parquet",
            "memory": path / "memory.parquet",
        }
        states.score_state(*self.inputs, RUN, CHOSEN, IDENTITY, self.outputs)

    @property
    def inputs(self) -> tuple[Path, Path]:
        return self.path / "model.json", self.path / "blocks.safetensors"

    def evaluate_static(self, output: Path, chosen: dict[str, Any] = CHOSEN) -> None:
        sets = self.outputs["sets"]
        evaluation.evaluate_rules(
            *self.inputs, RUN, IDENTITY, output, STATIC_RULES, sets=sets, chosen=chosen
        )


@pytest.fixture(scope="module")
def made(
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Folder]:
    found: dict[str, Folder] = {}

    def make(family: str) -> Folder:
        if family not in found:
            path = tmp_path_factory.mktemp(family)
            found[family] = Folder(path, tiny_model(family), tiny_tokenizer)
        return found[family]

    return make


def test_static_settings_are_evaluated(made: Callable[[str], Folder]) -> None:
    folder = made("mamba2")
    output = folder.path / "state-static.parquet"
    folder.evaluate_static(output)
    table = pd.read_parquet(output)
    assert set(table["site"]) == {"state"}
    assert set(table["access"]) == {"both"}
    assert len(table) == (3 + 2) * 2 * 6
    again = folder.path / "again.parquet"
    folder.evaluate_static(again)
    assert again.read_bytes() == output.read_bytes()


def test_windowed_settings_need_no_keep_sets(made: Callable[[str], Folder]) -> None:
    folder = made("mamba2")
    for choice in ("oracle", "causal"):
        rules = {"kind": "state", "part": "windowed", "grid": DIAL, "seeds": [1], "choice": choice}
        output = folder.path / f"{choice}.parquet"
        evaluation.evaluate_rules(*folder.inputs, RUN, IDENTITY, output, rules)
        table = pd.read_parquet(output)
        assert set(table["window"]) == {"1", "4", "sequence"}
        assert set(table["access"]) == {"read", "write"}
        assert table["nll"].notna().all()


def test_lengths_have_passages_of_their_own(made: Callable[[str], Folder]) -> None:
    folder = made("mamba2")
    output = folder.path / "length.parquet"
    sets = folder.outputs["sets"]
    rules = {"kind": "state", "state": section(), "seeds": [1, 2]}
    evaluation.evaluate_lengths(*folder.inputs, sets, RUN, rules, CHOSEN, IDENTITY, output)
    table = pd.read_parquet(output)
    # Nine blocks are more than there are.
    assert table.groupby("length")["block"].nunique().to_dict() == {16: 6, 32: 3}
    assert (table["n_tokens"] == table["length"] - 1).all()
    network = AutoModelForCausalLM.from_pretrained(folder.path / "checkpoint")
    rows = text.load_blocks(folder.inputs[1]).longer[2].evaluation
    with torch.no_grad():
        loss = network(input_ids=rows, labels=rows).loss
    dense = table.query("length == 32 and method == 'dense'")
    assert dense["nll"].sum() / dense["n_tokens"].sum() == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "score"),
    [("mamba2", "ghost"), ("mamba2", "ghost-uniform"), ("falcon_mamba", "ghost-uniform")],
)
def test_the_pruned_checkpoint_does_what_it_should(
    made: Callable[[str], Folder], family: str, score: str
) -> None:
    folder = made(family)
    prune = {"score": score, "sparsity": 0.5}
    output = folder.path / f"pruned-{score}"
    sets = folder.outputs["sets"]
    states.prune_state(*folder.inputs, sets, RUN, CHOSEN, prune, IDENTITY, output)
    found = store.read_json(output.with_suffix(".json"))
    assert found["perplexity_pruned"] == pytest.approx(found["perplexity_masked"], rel=1e-5)
    assert found["perplexity_pruned"] != pytest.approx(found["perplexity_dense"], rel=1e-6)
    assert found["state_bytes_pruned"] * 2 == found["state_bytes_dense"]
    assert found["parameters_pruned"] < found["parameters_dense"]
    if score == "ghost-uniform":
        AutoModelForCausalLM.from_pretrained(output)


def test_a_model_without_a_state_gives_empty_tables(made: Callable[[str], Folder]) -> None:
    folder = made("llama")
    assert len(pd.read_parquet(folder.outputs["channels"])) == 0
    output = folder.path / "state-static.parquet"
    folder.evaluate_static(output)
    table = pd.read_parquet(output)
    assert len(table) == 0
    assert {"nll", "access", "sparsity"} <= set(table)


def test_foreign_keep_sets_are_refused(made: Callable[[str], Folder]) -> None:
    folder = made("mamba2")
    with pytest.raises(CacheError, match="stale keep sets: seeds"):
        folder.evaluate_static(folder.path / "unused", {**CHOSEN, "seeds": [5, 6]})


def test_tasks_run_under_rules_on_the_state(made: Callable[[str], Folder]) -> None:
    folder = made("mamba2")
    items = [
        text.Item(
            at, "recall", f"Remember: Anna ring, Paul key. {'So it was. ' * at}Paul", "key", 2, at
        )
        for at in range(4)
    ]
    text.save_items(items, folder.path / "recall.jsonl")
    kinds = {"state": {"tasks": {"state": section()}, "seeds": [1, 2], "chosen": CHOSEN}}
    output = folder.path / "capability.parquet"
    evaluation.evaluate_capability(
        folder.path / "recall.jsonl", {**IDENTITY, "task": "recall"}, output,
        model=folder.inputs[0], blocks=folder.inputs[1], sets=[folder.outputs["sets"]],
        run=RUN, kinds=kinds,
    )  # fmt: skip
    table = pd.read_parquet(output)
    assert set(State.model_validate(STATE).windowed.access) <= set(table["access"])
    assert (table["n_facts"] == 2).all()
    assert table.query("method == 'dense'")["distance"].tolist() == [0, 1, 2, 3]
    assert (
        table.groupby(["method", "score", "window", "choice", "access"])["item"].count().eq(4).all()
    )
