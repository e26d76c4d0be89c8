"""Specimens from corpora to checkpoint folders."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keepset.errors import CacheError
from keepset.files import store
from keepset.settings import Training, TrainingData
from keepset.steps.training import load_rows, load_tokenizer, prepare_training, train_specimen

SETTINGS: dict[str, Any] = Training.model_validate(
    {
        "corpora": {"wiki": 2},
        "vocabulary": 670,
        "sequence": 32,
        "batch": 2,
        "steps": 4,
        "warmup": 1,
        "recall": {"words": 4},
        "log_every": 1,
        "specimens": {
            "tiny": {
                "model_type": "opt",
                "config": {
                    "hidden_size": 16,
                    "word_embed_proj_dim": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "ffn_dim": 32,
                    "max_position_embeddings": 32,
                },
            }
        },
    }
).model_dump()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    sentences = [f"The {a} saw the {b} again. It was late." for a in ANIMALS for b in ANIMALS]
    split = ["calibration", "evaluation", "heldout"]
    table = pd.DataFrame(
        {"split": [split[at % 3] for at in range(len(sentences))], "text": sentences}
    )
    table.to_parquet(folder / "wiki.parquet")
    data = {key: SETTINGS[key] for key in TrainingData.model_fields}
    tokenizer = folder / "data/tokenizer.json"
    prepare_training([folder / "wiki.parquet"], {"wiki": {}}, data, tokenizer)
    return folder / "data"


ANIMALS = "cat dog fox hen owl cow rat bee ant pig emu eel ape yak elk jay".split()  # noqa: SIM905


def test_only_calibration_text_is_trained_on(data: Path) -> None:
    rows, heldout = load_rows(Training.model_validate(SETTINGS), load_tokenizer(data), data)
    tokenizer = load_tokenizer(data)
    trained = tokenizer.decode(torch.cat([rows.batch(s).ids.flatten() for s in range(400)]))
    assert "The cat saw the cat again." in trained  # sentence 0: calibration
    assert "The cat saw the dog again." not in trained  # 1: evaluation
    assert "The cat saw the fox again." not in trained  # 2: held out
    assert "The cat saw the fox again." in tokenizer.decode(heldout.flatten())
    sources = store.read_json(data / "sources.json")["sources"]
    assert sources["wiki"]["documents"] == 86
    assert sources["wiki"]["repeats"] == 2


def test_a_trained_specimen_loads_in_plain_transformers(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny" / "model"
    tokens = data / "text.safetensors"
    train_specimen("tiny", SETTINGS, tokens, "cpu", "float32", output, until=2)
    assert not output.exists()
    train_specimen("tiny", SETTINGS, tokens, "cpu", "float32", output)
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = tokenizer("The cat saw", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()
    facts = store.read_json(output.parent / "losses.json")
    assert (facts["steps"], facts["tokens"]) == (4, 4 * 2 * 32)
    losses = pd.read_parquet(output.parent / "losses.parquet")
    assert losses["step"].max() == 4
    state = torch.load(output.parent / "checkpoint.pt", weights_only=True)
    assert torch.equal(
        state["model"]["model.decoder.embed_tokens.weight"], model.get_input_embeddings().weight
    )


def test_damaged_training_data_is_named(data: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "sources.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    (tmp_path / "text.safetensors").write_bytes(b"no")
    with pytest.raises(CacheError, match="damaged training data"):
        load_rows(Training.model_validate(SETTINGS), load_tokenizer(data), tmp_path)
