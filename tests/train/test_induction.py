"""Weights that start near an induction circuit."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize, silu, softplus
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import ConfigError
from keepset.settings import Specimen
from keepset.train.loop import build_model

ATTENTION: dict[str, dict[str, Any]] = {
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 32,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    },
    "qwen2": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
}
ATTENTION["qwen3_moe"] = {
    **ATTENTION["qwen2"],
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "attention_bias": True,
}
QWEN3_5: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 32,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
}
MAMBA2: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "head_dim": 32,
    "num_heads": 4,
    "state_size": 48,
    "n_groups": 1,
}
ZAMBA2: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layers_block_type": ["mamba", "hybrid"],
    "num_mem_blocks": 1,
    "mamba_headdim": 32,
    "n_mamba_heads": 4,
    "mamba_d_state": 24,
    "mamba_ngroups": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 32,
    "adapter_rank": 4,
}
N = 24  # tokens, which are then said again


@pytest.fixture
def build(tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(kind: str, config: dict[str, Any], *, induction: bool = True) -> PreTrainedModel:
        specimen = Specimen(model_type=kind, config=config, induction=induction)
        model = build_model("small", specimen, tokenizer, seed=3).eval()
        if kind in ATTENTION:
            model.set_attn_implementation("eager")
        return model

    return make


@pytest.fixture
def repeated(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """(1, 2 N): N different tokens, twice."""
    drawn = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(0))[:N]
    return drawn.repeat(2)[None]


@torch.no_grad()
def looks(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, float]:
    """Share of attention on the previous token, in layer 0; after its first saying, in layer 1."""
    first, second = model(input_ids=ids, output_attentions=True).attentions
    back = first[0].diagonal(-1, 1, 2).mean()
    at = torch.arange(N, 2 * N)
    return float(back), float(second[0][:, at, at - N + 1].mean())


# Rotary positions turn queries against keys, and blur over a distance what would match.
@pytest.mark.parametrize(("kind", "share"), [("opt", 0.4), ("qwen2", 0.1), ("qwen3_moe", 0.1)])
def test_attention_looks_one_step_back_and_then_where_the_token_stood_before(
    build: Any, repeated: torch.Tensor, kind: str, share: float
) -> None:
    back, found = looks(build(kind, ATTENTION[kind]), repeated)
    assert back > 0.9
    assert found > share
    back, found = looks(build(kind, ATTENTION[kind], induction=False), repeated)
    assert back < 0.1  # one in all tokens so far, from 1 to 2 N
    assert found < 0.05  # the same, from N to 2 N


@pytest.mark.parametrize(("kind", "config"), [("mamba2", MAMBA2), ("zamba2", ZAMBA2)])
@torch.no_grad()
def test_a_state_is_read_where_the_token_before_was_written(
    build: Any, repeated: torch.Tensor, kind: str, config: dict[str, Any]
) -> None:
    model = build(kind, config)
    layer = model.base_model.layers[0]
    mixer = layer.mixer if kind == "mamba2" else layer.mamba
    norm = layer.norm if kind == "mamba2" else layer.input_layernorm
    inner = mixer.intermediate_size
    projected = mixer.in_proj(norm(model.get_input_embeddings()(repeated)))
    convolved = mixer.conv1d(projected[..., inner : inner + mixer.conv1d.in_channels].mT)
    write, read = silu(convolved[0, inner:, : 2 * N]).chunk(2)  # B and C, one column per token
    at = torch.arange(N, 2 * N - 1)
    scores = read.T[at] @ write
    assert scores.shape == (N - 1, 2 * N)
    # Written twice after this token: behind its first saying, and behind this one, not yet seen.
    right = scores[:, : N + 1].argmax(dim=1) == at - N + 1
    assert right.float().mean() > 0.9
    assert (write.abs() > 0.3).float().mean() < 0.2  # few entries stand for a token


@torch.no_grad()
def test_a_delta_rule_reads_under_a_token_what_followed_it(
    build: Any, repeated: torch.Tensor
) -> None:
    model = build("qwen3_5_text", QWEN3_5)
    layer = model.base_model.layers[0]
    mixer = layer.linear_attn
    projected = mixer.in_proj_qkv(layer.input_layernorm(model.get_input_embeddings()(repeated)))
    convolved = silu(mixer.conv1d(projected.mT)[0, : 2 * mixer.key_dim, : 2 * N])
    heads = convolved.view(2, mixer.num_k_heads, mixer.head_k_dim, 2 * N)
    read, write = normalize(heads, dim=2)
    at = torch.arange(N, 2 * N - 1)
    for head in range(mixer.num_k_heads):
        scores = read[head].T[at] @ write[head]
        right = scores[:, : N + 1].argmax(dim=1) == at - N + 1
        assert right.float().mean() > 0.9


@torch.no_grad()
def test_a_delta_rule_starts_with_a_memory(build: Any) -> None:
    """Every head forgets less than half of what it holds at a token; as drawn, most forget it."""
    for induction in (True, False):
        mixer = build("qwen3_5_text", QWEN3_5, induction=induction).base_model.layers[0].linear_attn
        kept = (-mixer.A_log.exp() * softplus(mixer.dt_bias)).exp()
        assert bool((kept > 0.2).all()) == induction


def test_the_shared_block_of_a_hybrid_starts_silent(build: Any) -> None:
    layers = build("zamba2", ZAMBA2).base_model.layers
    assert not layers[1].linear.weight.any()


def test_weights_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    specimen = Specimen(model_type="opt", config=ATTENTION["opt"], induction=True)
    a, b, c = (build_model("small", specimen, tokenizer, seed).state_dict() for seed in (1, 1, 2))
    key = "model.decoder.layers.1.self_attn.q_proj.weight"
    assert torch.equal(a[key], b[key])
    assert not torch.equal(a[key], c[key])


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}, "not known for a gpt2"),
        ("opt", {"num_hidden_layers": 1}, "raise num_hidden_layers"),
        ("opt", {"num_attention_heads": 1}, "two attention heads"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("qwen2", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("qwen3_moe", {"attention_bias": False}, "attention_bias must be true"),
    ],
)
def test_a_model_without_room_for_the_circuit_is_an_error(
    build: Any, kind: str, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"training\.specimens\.small\.induction: .*{said}"):
        build(kind, {**ATTENTION.get(kind, {}), **config})
