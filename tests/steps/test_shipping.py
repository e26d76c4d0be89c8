"""Trained specimens: held against their gates, and shipped."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_training import ANIMALS, SETTINGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from keepset import settings
from keepset.files import store
from keepset.steps.shipping import measure_specimens, model_card, ship_specimens
from keepset.steps.training import prepare_training, train_specimen
from keepset.train.gates import Measurement

KEYS = settings.TrainingData.model_fields
SHIPPED = sorted((Path(__file__).parents[2] / "specimens").glob("*/README.md"))
LONG = copy.deepcopy(SETTINGS)  # recall items are longer than the rows
LONG["specimens"]["tiny"]["config"]["max_position_embeddings"] = 256


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "training"
    folder.mkdir()
    texts = [f"The {a} saw the {b} again. It was late." for a in ANIMALS for b in ANIMALS]
    split = ["calibration", "evaluation", "heldout"]
    table = pd.DataFrame({"split": [split[at % 3] for at in range(len(texts))], "text": texts})
    table.to_parquet(folder / "wiki.parquet")
    corpora, tokens = [folder / "wiki.parquet"], folder / "text.safetensors"
    settings_of_data = {key: LONG[key] for key in KEYS}
    prepare_training(corpora, {"wiki": {}}, settings_of_data, folder / "tokenizer.json")
    train_specimen("tiny", LONG, tokens, "cpu", "float32", folder / "tiny/model")
    output = folder / "gates.json"
    measure_specimens(["tiny"], [folder / "tiny/model"], tokens, corpora, LONG, output)
    return folder


def test_a_specimen_is_shipped_in_float16_with_its_card(trained: Path, tmp_path: Path) -> None:
    (folder,) = ship_specimens(trained, tmp_path / "specimens")
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(trained / "tiny/model")
    for one, other in zip(shipped.parameters(), original.parameters(), strict=True):
        assert one.dtype == torch.float16
        assert torch.equal(one, other.half())
    assert AutoTokenizer.from_pretrained(folder).vocab_size == 670
    card = (folder / "README.md").read_text()
    for part in (
        "OPTForCausalLM",
        "4 steps",
        "| recall with 1 to 4 facts |",
        "**fail**",
        "wiki (86",
    ):
        assert part in card
    assert pd.read_parquet(folder / "losses.parquet")["step"].max() == 4
    found = settings.find_specimens(str(tmp_path / "specimens"))
    assert {name: model.sites for name, model in found.items()} == {"tiny": ["ffn", "input"]}


def test_the_gates_are_on_record(trained: Path) -> None:
    found = store.read_json(trained / "gates.json")
    names = {gate["name"] for gate in found["gates"]}
    assert names == {
        "recall with 1 to 4 facts", "float16 changes perplexity by", "perplexity without the FFN"
    }  # fmt: skip
    assert set(found["measured"]["tiny"]["recall"]) == {"1", "2", "4", "8"}


def test_the_card_says_what_was_missed() -> None:
    trained: dict[str, Any] = {
        "architecture": "Mamba2ForCausalLM", "data": "text", "steps": 10, "tokens": 100, "seed": 1,
        "induction": True,
        "device": "cpu", "dtype": "torch.bfloat16", "seconds": 60.0, "text_nll": 4.0,
    }  # fmt: skip
    measured = asdict(
        Measurement(5, 50.0, 50.0, {"1": 0.5}, {}, 80.0, 0.02, 90.0, {"ffn.000": [0.25, 0.75]})
    )
    gate = {"name": "recall", "value": 0.5, "bound": "at least 0.8", "passed": False}
    text = model_card("mamba2", trained, measured, [gate, {**gate, "name": "b", "passed": True}])
    family = next(line for line in text.splitlines() if line.startswith("A specimen"))
    assert "differ in more than the part under study" in family
    for card in SHIPPED:
        assert family in card.read_text("utf-8"), card
    assert "It misses 1: recall." in text
    assert "Start: near an induction circuit" in text
    plain = model_card("mamba2", {**trained, "induction": False}, measured, [gate])
    assert "Start: as transformers draws it" in plain
    assert "perplexity 80.00, recall 2.0%" in text
    assert "Without its FFN: perplexity 90.00." in text
    assert "routed to an expert: 25.0% to 75.0%" in text
    assert "It passes all." in model_card("mamba2", trained, measured, [{**gate, "passed": True}])


def test_specimens_are_small() -> None:
    sizes = [sum(file.stat().st_size for file in card.parent.iterdir()) / 2**20 for card in SHIPPED]
    assert len(sizes) == 7
    assert max(sizes) <= 16
    assert sum(sizes) <= 96
