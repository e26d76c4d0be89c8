"""Sizes of models: the formulas and the table against transformers, which counts."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from keepset import settings
from keepset.plan import sizes
from keepset.plan.counting import size_of_model
from keepset.plan.sizes import from_config, known_size, table
from keepset.sites.families import FAMILIES

ROOT = Path(__file__).parents[2]
SPECIMENS = sorted(path.parent for path in (ROOT / "specimens").glob("*/config.json"))
OPT = {"vocab_size": 50272, "max_position_embeddings": 2048}
QWEN = {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
MAMBA = {"vocab_size": 50288, "state_size": 128, "head_dim": 64, "n_groups": 1, "chunk_size": 256}
MAMBA |= {"tie_word_embeddings": True}


def mamba(width: int, layers: int) -> dict:
    return {**MAMBA, "hidden_size": width, "num_hidden_layers": layers, "num_heads": width // 32}


def opt(width: int, layers: int, **more: object) -> dict:
    shape = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return {**OPT, **shape, "num_hidden_layers": layers, "num_attention_heads": 16, **more}


def qwen(width: int, layers: int, units: int, heads: int, positions: int) -> dict:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": units}
    return {**QWEN, **shape, "num_attention_heads": heads, "max_position_embeddings": positions}


HYBRID = {
    "hidden_size": 2048,
    "num_hidden_layers": 38,
    "layers_block_type": ["hybrid" if at % 6 == 5 else "mamba" for at in range(38)],
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "n_mamba_heads": 64,
    "mamba_d_state": 128,
    "adapter_rank": 128,
    "use_shared_attention_adapter": True,
    "use_mem_rope": True,
    "vocab_size": 32000,
}
PUBLISHED = {
    "facebook/opt-350m": (
        "opt",
        opt(1024, 24, word_embed_proj_dim=512, do_layer_norm_before=False),
    ),
    "facebook/opt-1.3b": ("opt", opt(2048, 24)),
    "facebook/opt-2.7b": ("opt", opt(2560, 32)),
    "Qwen/Qwen2.5-0.5B": ("qwen2", qwen(896, 24, 4864, 14, 32768)),
    "Qwen/Qwen2.5-1.5B": ("qwen2", qwen(1536, 28, 8960, 12, 131072)),
    "Zyphra/Zamba2-1.2B": ("zamba2", HYBRID),
    "state-spaces/mamba2-130m": ("mamba2", mamba(768, 24)),
    "state-spaces/mamba2-370m": ("mamba2", mamba(1024, 48)),
    "state-spaces/mamba2-780m": ("mamba2", mamba(1536, 48)),
    "state-spaces/mamba2-1.3b": ("mamba2", mamba(2048, 48)),
    "state-spaces/mamba2-2.7b": ("mamba2", mamba(2560, 64)),
}


def built(family: str, shape: dict) -> object:
    """The model of transformers, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))


@pytest.mark.parametrize("hub", PUBLISHED)
def test_the_table_is_what_transformers_counts(hub):
    family, shape = PUBLISHED[hub]
    counted = size_of_model(built(family, shape))
    if family == "zamba2":
        # Each of six copies of the shared block holds the adapters of all six depths.
        adapters = 128 * (2048 + 2 * 8192) + 3 * 2 * 128 * 4096
        counted = replace(counted, multiplied=counted.multiplied - 5 * 6 * adapters)
    if family == "mamba2":
        counted = replace(counted, positions=0)
    assert table()[hub] == counted


def test_parameters_by_hand():
    """OPT-1.3B: embeddings, positions (two for padding), 24 layers, the last norm."""
    layer = 4 * (2048**2 + 2048) + 2 * 2048 * 8192 + 8192 + 2048 + 4 * 2048
    embeddings = 50272 * 2048 + 2050 * 2048
    assert table()["facebook/opt-1.3b"].parameters == embeddings + 24 * layer + 2 * 2048
    # Every token meets the matrices of the layers, and the output layer.
    multiplied = 24 * (4 * 2048**2 + 2 * 2048 * 8192) + 50272 * 2048
    assert table()["facebook/opt-1.3b"].multiplied == multiplied
    assert table()["state-spaces/mamba2-1.3b"].state_numbers == 48 * 64 * 64 * 128


@pytest.mark.parametrize("family", [n for n, family in FAMILIES.items() if family.size])
def test_formulas_hold_for_tiny_models_too(family, tiny_model, tmp_path):
    shape = {"use_shared_attention_adapter": False} if family == "zamba2" else {}
    model = tiny_model(family, **shape)
    model.save_pretrained(tmp_path)
    found = from_config(json.loads((tmp_path / "config.json").read_text()))
    assert found is not None
    assert found.parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("llama", {"attention_bias": True}),
        ("qwen3_moe", {"attention_bias": True, "tie_word_embeddings": True}),
        ("qwen3_moe", {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]}),
        ("qwen3_5_text", {"attention_bias": True, "num_hidden_layers": 5, "layer_types": None}),
    ],
)
def test_biases_and_kinds_of_layers_count(family, shape, tiny_model):
    model = tiny_model(family, **shape)
    assert from_config(model.config.to_dict()).parameters == model.num_parameters()


def test_a_token_meets_the_experts_it_is_routed_to(tiny_model):
    model = tiny_model("qwen3_moe")
    expert = sum(p[0].numel() for n, p in model.named_parameters() if "experts" in n)
    idle = model.config.num_experts - model.config.num_experts_per_tok
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    size = from_config(model.config.to_dict())
    assert size.multiplied == sum(p.numel() for p in matrices) - idle * expert


def test_what_is_counted_of_a_delta_rule_is_what_is_built(tiny_model):
    model = tiny_model("qwen3_5_text")
    assert from_config(model.config.to_dict()) == size_of_model(model)


@pytest.mark.parametrize("folder", SPECIMENS, ids=lambda folder: folder.name)
def test_the_size_of_a_specimen_is_known_from_its_configuration(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        stored = sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert from_config(json.loads((folder / "config.json").read_text())).parameters == stored


def test_post_norm_opt_with_projections(tiny_model, tmp_path):
    model = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    model.save_pretrained(tmp_path)
    found = from_config(json.loads((tmp_path / "config.json").read_text()))
    assert found.parameters == model.num_parameters()


def test_the_packages_own_form_pads_the_vocabulary():
    ssm = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    own = {**ssm, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    assert from_config(own) == table()["state-spaces/mamba2-130m"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model_type": "gpt2", "n_embd": 32},
        {"model_type": "opt"},
        {"model_type": "llama", "hidden_size": "many"},
        {"model_type": "llama", **qwen(64, 2, 32, 4, 128), "mlp_bias": True},
    ],
)
def test_what_has_no_formula_is_not_guessed(content):
    assert from_config(content) is None


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study with one hub model, which the cache may hold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    embedded = settings.load(ROOT / "config.yaml")
    model = settings.Model(hub="facebook/opt-1.3b", revision="main")
    return embedded.model_copy(update={"models": {"m": model}, "specimens": None})


def test_a_cached_config_wins_over_the_table(config, tmp_path):
    assert known_size(config, "m").size == table()["facebook/opt-1.3b"]
    repository = tmp_path / "home/hub/models--facebook--opt-1.3b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    snapshot = repository / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "opt", **opt(64, 2)}))
    assert sizes.config_file(config, "m") == snapshot / "config.json"
    assert known_size(config, "m").size.d_model == 64
    (snapshot / "config.json").write_text("{")
    assert known_size(config, "m").size == table()["facebook/opt-1.3b"]


def test_a_model_that_is_nowhere_has_no_size(config):
    unknown = settings.Model(hub="someone/else")
    assert known_size(config.model_copy(update={"models": {"m": unknown}}), "m") is None


def test_a_converted_checkpoint_is_looked_for_where_the_caller_says(config, tmp_path):
    """And not in the current directory."""
    folder = tmp_path / "results" / config.study / "m" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", **opt(64, 2)}))
    assert known_size(config, "m").size == table()["facebook/opt-1.3b"]
    assert known_size(config, "m", folder.parents[1]).size.d_model == 64
