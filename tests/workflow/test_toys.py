"""The papers' study at toy size: every architecture, by its hub name, through the DAG, offline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hub_in_a_folder import (
    COMMIT,
    make_mamba,
    make_opt,
    make_qwen,
    make_zamba,
    neox_tokenizer,
    store,
    store_dataset,
    wikitext,
    write,
)
from transformers import AutoModelForCausalLM

from conftest import ROOT, Study, lay_out, prose
from keepset import text

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

MAKERS: dict[str, Callable[..., None]] = {
    "qwen2.5-0.5b": make_qwen,
    "opt-350m": lambda folder, build: make_opt(
        folder, build, do_layer_norm_before=False, word_embed_proj_dim=16
    ),
    "zamba2-1.2b": make_zamba,
    "mamba2-130m": lambda folder, build: make_mamba(folder, build, 260),
}
CLASSES = {
    "qwen2.5-0.5b": "Qwen2ForCausalLM",
    "opt-350m": "OPTForCausalLM",
    "zamba2-1.2b": "Zamba2ForCausalLM",
    "mamba2-130m": "Mamba2ForCausalLM",
}
WHOLE = ("opt-350m", "mamba2-130m")
"""What no other test runs from one end of the DAG to the other. Each job takes seconds to start,
and the tiny study has Zamba2, OPT with norms before its layers, and Llama: the others here are run
dense, and under rules on each kind of site."""
PARTS = {
    "qwen2.5-0.5b": ("dense", "dynamic"),
    "zamba2-1.2b": ("dense", "dynamic", "state-windowed-oracle"),
}
RUNS = {
    "qwen2.5-0.5b": {("none", "dense"), ("ffn", "dynamic")},
    "zamba2-1.2b": {("none", "dense"), ("ffn", "dynamic"), ("state", "windowed")},
    "opt-350m": {("none", "dense"), *(("ffn", m) for m in ("static", "dynamic", "windowed"))},
    "mamba2-130m": {("none", "dense"), ("state", "static"), ("state", "windowed")},
}


def shrunk() -> dict[str, Any]:
    """config/paper.yaml with one corpus, little text and few settings."""
    config = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    one = {"scores": ["magnitude"], "sparsities": [0.5]}
    held = {"windows": [4], "choices": ["oracle"]}
    scores = ["ghost-uniform", "taylor"]
    return {
        **config,
        "only": list(WHOLE),
        "device": "cpu",
        "dtype": "float32",
        "corpora": {"wikitext2": config["corpora"]["wikitext2"]},
        "text": dict.fromkeys(
            ("calibration_tokens", "evaluation_tokens", "specimen_evaluation_tokens"), 128
        )
        | {"block": 32, "batch_tokens": 64},
        "tasks": {"lambada": {**config["tasks"]["lambada"], "items": 6}},
        "grid": {"static": {**one, "scores": ["taylor"]}, "dynamic": one, "windowed": one | held},
        "capability": {**config["capability"], "window": 4},
        "state": {
            **config["state"],
            "static": {"scores": scores, "sparsities": [0.5]},
            "windowed": {"scores": ["impact"], "sparsities": [0.5], **held, "access": ["write"]},
            "capability": {"scores": ["ghost-uniform"], "sparsities": [0.5]},
            "capability_window": 4,
            "lengths": [1, 2],
        },
        "ablation": {"units": 16, "tokens": 32},
        "statistics": {"rounding_draws": 0},
    }


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint, tiny_model) -> Study:
    """The study, run where only a cache is."""
    study = lay_out(tmp_path_factory.mktemp("toys"), tiny_checkpoint)
    study.config = shrunk()
    home, scratch = study.folder / "home", study.folder / "scratch"
    for name, make in MAKERS.items():
        source, made = study.config["models"][name], scratch / name
        made.mkdir(parents=True)
        make(made, tiny_model)
        store(home, source["hub"], source["revision"], made)
    neox = scratch / "neox"
    neox.mkdir()
    neox_tokenizer(neox)
    write(neox, {"config.json": {"model_type": "gpt_neox"}})
    store(home, "EleutherAI/gpt-neox-20b", None, neox)
    lines = {split: list(wikitext(prose(at, 6))) for at, split in enumerate(("train", "test"))}
    store_dataset(home, "Salesforce/wikitext", "wikitext-2-raw-v1", lines, scratch)
    passages = [" ".join(prose(at, 1).split()[:14]).rstrip(".") for at in range(20, 28)]
    store_dataset(home, "EleutherAI/lambada_openai", None, {"test": passages}, scratch)
    study.environment = {"HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1"}
    others = [
        f"results/paper/{name}/wikitext2/{part}.parquet"
        for name, parts in PARTS.items()
        for part in parts
    ]
    study.run("tables", "states", "claims", *others)
    return study


def results(study: Study):
    return study.folder / "results/paper"


@pytest.mark.parametrize("name", MAKERS)
def test_every_architecture_is_found_under_its_hub_name(toys, name):
    info = json.loads((results(toys) / name / "model.json").read_text())
    assert info["architecture"] == CLASSES[name]
    assert info["source"]["hub"] == toys.config["models"][name]["hub"]
    converted = name == "mamba2-130m"
    pinned = toys.config["models"][name]["revision"]
    assert info["revision"] == (None if converted else COMMIT if pinned == "main" else pinned)


def perplexities(study: Study, name: str) -> pd.DataFrame:
    parts = PARTS.get(name, ("perplexity",))
    folder = results(study) / name / "wikitext2"
    return pd.concat([pd.read_parquet(folder / f"{part}.parquet") for part in parts])


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "opt-350m", "zamba2-1.2b"])
def test_dense_is_what_transformers_reads_from_the_cache(toys, name):
    source = toys.config["models"][name]
    repository = toys.folder / "home/hub" / f"models--{source['hub'].replace('/', '--')}"
    model = AutoModelForCausalLM.from_pretrained(
        repository / "snapshots" / source["revision"], dtype=torch.float32
    )
    blocks = text.load_blocks(results(toys) / name / "wikitext2/blocks.safetensors").evaluation
    with torch.no_grad():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in blocks]
    dense = perplexities(toys, name).query("method == 'dense'")
    ours = dense["nll"].sum() / dense["n_tokens"].sum()
    assert ours == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_every_rule_runs_and_changes_the_loss(toys, name):
    loss = perplexities(toys, name).groupby(["site", "method"])["nll"].sum()
    assert set(loss.index) == RUNS[name]
    assert all(math.isfinite(value) for value in loss)
    others = loss.drop(("none", "dense"))
    assert (others - loss["none", "dense"]).abs().min() > 1e-6


@pytest.mark.parametrize("name", WHOLE)
def test_lambada_is_asked_under_every_rule(toys, name):
    rows = pd.read_parquet(results(toys) / name / "lambada/capability.parquet")
    # Causal windows are of choices that this grid leaves out.
    assert set(zip(rows["site"], rows["method"], strict=True)) == {
        *RUNS[name],
        *({("state", "dynamic")} if name == "mamba2-130m" else ()),
    }
    assert rows.groupby(["site", "method"])["item"].nunique().eq(6).all()


def test_the_ledger_is_judged(toys):
    ledger = pd.read_csv(results(toys) / "claims.csv").set_index("claim")
    # Size against output weight of OPT's neurons, and the memory that scoring takes.
    assert "not tested here" not in set(ledger.loc[["C1", "C16"], "verdict"])
