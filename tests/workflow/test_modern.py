"""config/modern.yaml at toy size: every architecture, by its hub name, through the DAG, offline."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
import yaml
from hub_in_a_folder import qwen_tokenizer, store, store_dataset, wikitext
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import ROOT, Study, lay_out, prose
from keepset import settings
from keepset.plan import sizes

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2}
_MAMBA |= {"mamba_d_state": 8, "mamba_chunk_size": 16}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3.5-0.8b": ("qwen3_5_text", "Qwen3_5ForCausalLM", _DELTA),
    "olmo-hybrid-7b": ("olmo_hybrid", "OlmoHybridForCausalLM", _DELTA),
    "olmoe-1b-7b": ("olmoe", "OlmoeForCausalLM", _EXPERTS),
    "gpt-oss-20b": ("gpt_oss", "GptOssForCausalLM", _EXPERTS),
    "lfm2-350m": ("lfm2", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "falcon-h1-0.5b": ("falcon_h1", "FalconH1ForCausalLM", {**_MAMBA, "mamba_d_ssm": 64}),
    "granite-4.0-h-tiny": (
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **_MAMBA,
            **_EXPERTS,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 24,
        },
    ),
}
"""Name in config/modern.yaml -> model type, class, and what its toy has besides."""
METHODS = {"ffn": {"static", "dynamic"}, "state": {"static", "windowed"}}
METHODS |= {"expert": {"static", "windowed"}, "input": {"static", "dynamic"}}


def shrunk() -> dict[str, Any]:
    """config/modern.yaml with little text and few settings."""
    config = yaml.safe_load((ROOT / "config/modern.yaml").read_text())
    one = {"scores": ["magnitude"], "sparsities": [0.5]}
    held = {"windows": [4], "choices": ["oracle"]}
    return {
        **config,
        "device": "cpu",
        "dtype": "float32",
        "text": dict.fromkeys(
            ("calibration_tokens", "evaluation_tokens", "specimen_evaluation_tokens"), 64
        )
        | {"block": 32, "batch_tokens": 64},
        "tasks": {},
        "grid": {"static": one, "dynamic": one, "windowed": {**one, **held, "windows": [1]}},
        "capability": {**config["capability"], "window": 4},
        "state": {
            **config["state"],
            "static": {"scores": ["ghost-uniform"], "sparsities": [0.5]},
            "windowed": {"scores": ["impact"], "sparsities": [0.5], **held, "access": ["write"]},
            "capability": {"scores": ["ghost-uniform"], "sparsities": [0.5]},
            "capability_window": 4,
            "lengths": [1],
        },
        "expert": {
            "static": {"scores": ["impact"], "sparsities": [0.5]},
            "prune": {"score": "impact", "sparsity": 0.5},
            "windowed": {**one, **held},
        },
        "input": {
            "static": one,
            "dynamic": one,
            "windowed": {**one, **held, "windows": [1]},
        },
        "budget": {"allotments": ["equal"], "levels": [0.3]},
        "ablation": {"units": 4, "tokens": 32},
        "statistics": {"rounding_draws": 0},
    }


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint) -> Study:
    """The study, run where only a cache is."""
    study = lay_out(tmp_path_factory.mktemp("modern"), tiny_checkpoint)
    study.config = shrunk()
    home, scratch = study.folder / "home", study.folder / "scratch"
    for name, (model_type, _, more) in MODELS.items():
        source, made = study.config["models"][name], scratch / name
        made.mkdir(parents=True)
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        size = qwen_tokenizer(made)
        config = AutoConfig.for_model(model_type, vocab_size=size, **ends, **{**_SMALL, **more})
        AutoModelForCausalLM.from_config(config).save_pretrained(made)
        store(home, source["hub"], source["revision"], made)
    lines = {split: list(wikitext(prose(at, 6))) for at, split in enumerate(("train", "test"))}
    store_dataset(home, "Salesforce/wikitext", "wikitext-2-raw-v1", lines, scratch)
    study.environment = {"HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1"}
    study.run("perplexity", "results/modern/olmoe-1b-7b/wikitext2/pruned-experts.json")
    return study


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_goes_through(modern: Study, name: str) -> None:
    folder = modern.folder / "results/modern" / name
    info = json.loads((folder / "model.json").read_text())
    assert info["architecture"] == MODELS[name][1]
    assert info["revision"] == modern.config["models"][name]["revision"]
    table = pd.read_parquet(folder / "wikitext2/perplexity.parquet")
    kinds = modern.config["models"][name]["sites"]
    runs = {(row.site, row.method) for row in table.itertuples()}
    allotted = {("all", "dynamic")} if "input" in kinds else set()
    methods = {(kind, method) for kind in kinds for method in METHODS[kind]}
    assert runs == {("none", "dense"), *methods, *allotted}
    totals = table.groupby(["site", "method"])["nll"].sum()
    assert all(math.isfinite(total) for total in totals)
    dense = totals["none", "dense"]
    assert all(total != dense for (site, _), total in totals.items() if site != "none")


def test_a_checkpoint_with_fewer_experts_is_written(modern: Study) -> None:
    folder = modern.folder / "results/modern/olmoe-1b-7b/wikitext2"
    summary = json.loads((folder / "pruned-experts.json").read_text())
    assert (summary["experts_dense"], summary["experts_pruned"]) == (4, 2)
    assert summary["parameters_pruned"] < summary["parameters_dense"]
    assert summary["perplexity_pruned"] == pytest.approx(summary["perplexity_masked"], rel=1e-5)
    assert summary["perplexity_pruned"] != pytest.approx(summary["perplexity_dense"], rel=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(folder / "pruned-experts")
    assert (plain.config.num_experts, plain.config.num_experts_per_tok) == (2, 2)


def test_the_plan_knows_every_model() -> None:
    config = settings.load(ROOT / "config/modern.yaml")
    assert set(config.models) == set(MODELS)
    for name, model in config.models.items():
        known = sizes.known_size(config, name)
        assert known is not None, model.hub
        assert known.size.multiplied <= known.size.parameters
