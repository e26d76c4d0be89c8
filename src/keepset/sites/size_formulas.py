"""How large models are, from the content of a checkpoint's config.json: no weights, and no torch.

A formula is a function (content) -> Size; the records of `keepset.sites.families` name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Content = Mapping[str, Any]
"""What is in a config.json."""
DELTA_CHUNK = 64
"""Tokens that transformers' gated delta rule takes at a time; no configuration has it."""


@dataclass(frozen=True)
class Size:
    """What a forward pass costs depends on these."""

    parameters: int  # stored numbers; tied weights count once
    # Entries of weight matrices that one token is multiplied with: a block that serves several
    # depths counts at each, the output layer counts, embeddings do not.
    multiplied: int
    d_model: int  # width
    vocabulary: int  # rows of the output layer
    positions: int = 0  # longest text; 0 where there is no limit
    attention_layers: int = 0
    attention_width: int = 0  # heads x head dim of one of them
    ffn_layers: int = 0
    n_units: int = 0  # neurons of one of them
    gated: bool = False  # whether it has a gate beside the up projection
    state_layers: int = 0  # layers with a recurrent state
    heads: int = 0  # of such a layer
    head_dim: int = 0  # rows of a head's state
    n_state: int = 0  # columns of a head's state
    groups: int = 0  # of heads that share B and C, or k and q
    chunk: int = 0  # tokens that the model's own scan takes at a time
    interacts: bool = False  # whether what a channel holds depends on the others

    @property
    def state_numbers(self) -> int:
        """Numbers in the states of all layers of one sequence."""
        return self.state_layers * self.heads * self.head_dim * self.n_state

    @property
    def mixer_width(self) -> int:
        """Columns of a Mamba-2 layer's input projection."""
        if not self.state_layers:
            return 0
        return 2 * self.heads * self.head_dim + 2 * self.groups * self.n_state + self.heads


Formula = Callable[[Content], Size]


def opt(content: Content) -> Size:
    """Of OPT (arXiv:2205.01068)."""
    d, f, layers = content["hidden_size"], content["ffn_dim"], content["num_hidden_layers"]
    vocabulary, positions = content["vocab_size"], content["max_position_embeddings"]
    e = content.get("word_embed_proj_dim") or d
    projections = 2 * e * d if e != d else 0
    matrices = layers * (4 * d * d + 2 * d * f)
    # Biases of four attention and two feed-forward maps, and two layer norms.
    vectors = layers * (4 * d + f + d + 4 * d)
    # Post-norm models (opt-350m) have no norm at their end. Two positions are for padding.
    last = 2 * d if content.get("do_layer_norm_before", True) else 0
    return Size(
        parameters=vocabulary * e + (positions + 2) * d + projections + matrices + vectors + last,
        multiplied=matrices + projections + vocabulary * e,
        d_model=d,
        vocabulary=vocabulary,
        positions=positions,
        attention_layers=layers,
        attention_width=d,
        ffn_layers=layers,
        n_units=f,
    )


def _attention(content: Content, *, qkv_bias: bool, o_bias: bool) -> tuple[int, int, int]:
    """(matrices, biases, width of the queries) of one layer with grouped keys."""
    d, heads = content["hidden_size"], content["num_attention_heads"]
    head_dim = content.get("head_dim") or d // heads
    queries = heads * head_dim
    keys = (content.get("num_key_value_heads") or heads) * head_dim
    biases = qkv_bias * (queries + 2 * keys) + o_bias * d
    return d * (queries + 2 * keys) + queries * d, biases, queries


def _embeddings(content: Content) -> int:
    """Parameters of embeddings and output layer."""
    copies = 1 if content.get("tie_word_embeddings", False) else 2
    return int(copies * content["vocab_size"] * content["hidden_size"])


def llama(content: Content, *, qkv_bias: bool = False) -> Size:
    """Of Llama (arXiv:2302.13971); `qkv_bias`: whether q, k and v always have biases."""
    d, f, vocabulary = content["hidden_size"], content["intermediate_size"], content["vocab_size"]
    layers = content["num_hidden_layers"]
    bias = bool(content.get("attention_bias", False))
    attention, biases, width = _attention(content, qkv_bias=qkv_bias or bias, o_bias=bias)
    matrices = layers * (attention + 3 * d * f)
    return Size(
        parameters=_embeddings(content) + matrices + layers * (biases + 2 * d) + d,
        multiplied=matrices + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        positions=content["max_position_embeddings"],
        attention_layers=layers,
        attention_width=width,
        ffn_layers=layers,
        n_units=f,
        gated=True,
    )


qwen2 = partial(llama, qkv_bias=True)
"""Of Qwen2 (arXiv:2407.10671)."""


def qwen3_moe(content: Content) -> Size:
    """Of Qwen3-MoE (arXiv:2505.09388). A layer's neurons are those of all its experts."""
    d, vocabulary, layers = (
        content[key] for key in ("hidden_size", "vocab_size", "num_hidden_layers")
    )
    bias = bool(content.get("attention_bias", False))
    attention, biases, width = _attention(content, qkv_bias=bias, o_bias=bias)
    head_dim = width // content["num_attention_heads"]
    experts = content.get("num_experts") or content["num_local_experts"]
    f, dense_only = content["moe_intermediate_size"], content.get("mlp_only_layers") or ()
    step = content.get("decoder_sparse_step", 1)
    routed = sum(at not in dense_only and (at + 1) % step == 0 for at in range(layers))
    dense = (layers - routed) * 3 * d * content["intermediate_size"] if routed < layers else 0
    always = layers * attention + routed * d * experts + dense
    vectors = layers * (biases + 2 * head_dim + 2 * d) + d
    return Size(
        parameters=_embeddings(content) + always + vectors + routed * experts * 3 * d * f,
        multiplied=always + routed * content["num_experts_per_tok"] * 3 * d * f + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        positions=content["max_position_embeddings"],
        attention_layers=layers,
        attention_width=width,
        ffn_layers=layers,
        n_units=max(experts * f if routed else 0, content["intermediate_size"] if dense else 0),
        gated=True,
    )


def qwen3_5(content: Content) -> Size:
    """Of the text model of Qwen3.5: gated delta rules (arXiv:2412.06464), and gated attention."""
    d, f, vocabulary = content["hidden_size"], content["intermediate_size"], content["vocab_size"]
    kinds = content["layer_types"]
    layers, full = len(kinds), sum(kind == "full_attention" for kind in kinds)
    bias = bool(content.get("attention_bias", False))
    attention, biases, width = _attention(content, qkv_bias=bias, o_bias=bias)
    attention, biases = attention + d * width, biases + bias * width  # of the gate
    groups, n_state = content["linear_num_key_heads"], content["linear_key_head_dim"]
    heads, head_dim = content["linear_num_value_heads"], content["linear_value_head_dim"]
    keys, values = groups * n_state, heads * head_dim
    # q, k and v, which the convolution sees; the gate z, the output; decay and strength.
    mixer = d * (2 * keys + values) + 2 * d * values + 2 * d * heads
    convolution = (2 * keys + values) * content["linear_conv_kernel_dim"]
    matrices = full * attention + (layers - full) * mixer + layers * 3 * d * f
    vectors = full * (biases + 2 * width // content["num_attention_heads"])
    vectors += (layers - full) * (convolution + 2 * heads + head_dim) + layers * 2 * d + d
    return Size(
        parameters=_embeddings(content) + matrices + vectors,
        multiplied=matrices + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        positions=content["max_position_embeddings"],
        attention_layers=full,
        attention_width=width,
        ffn_layers=layers,
        n_units=f,
        gated=True,
        state_layers=layers - full,
        heads=heads,
        head_dim=head_dim,
        n_state=n_state,
        groups=groups,
        chunk=DELTA_CHUNK,
        interacts=True,
    )


def _mixer(d: int, inner: int, groups_by_state: int, heads: int, kernel: int) -> tuple[int, int]:
    """(parameters with the layer's norm, entries of matrices) of a Mamba-2 layer without biases."""
    matrices = d * (2 * inner + 2 * groups_by_state + heads) + inner * d
    convolution = (inner + 2 * groups_by_state) * (kernel + 1)
    return matrices + convolution + 3 * heads + inner + d, matrices


def mamba2(content: Content) -> Size:
    """Of Mamba-2 (arXiv:2405.21060)."""
    d, layers = content["hidden_size"], content["num_hidden_layers"]
    vocabulary, heads, head_dim = content["vocab_size"], content["num_heads"], content["head_dim"]
    groups, n_state = content["n_groups"], content["state_size"]
    inner, kernel = heads * head_dim, content["conv_kernel"]
    per_layer, matrices = _mixer(d, inner, groups * n_state, heads, kernel)
    return Size(
        parameters=_embeddings(content) + layers * per_layer + d,
        multiplied=layers * matrices + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        state_layers=layers,
        heads=heads,
        head_dim=head_dim,
        n_state=n_state,
        groups=groups,
        chunk=content.get("chunk_size", 256),
    )


def mamba_ssm(content: Content) -> Size:
    """Of a config.json of the package mamba_ssm, which pads the vocabulary."""
    multiple = content.get("pad_vocab_size_multiple", 1)
    return mamba2(as_transformers(content, -(-content["vocab_size"] // multiple) * multiple))


def as_transformers(content: Content, vocabulary: int) -> dict[str, Any]:
    """A config.json of the package mamba_ssm, under the keys of transformers' Mamba-2.

    Args:
        content: d_model, n_layer, ssm_cfg, tie_embeddings.
        vocabulary: Rows of the embeddings, with padding.
    """
    ssm, d = content.get("ssm_cfg") or {}, content["d_model"]
    expand, head_dim = ssm.get("expand", 2), ssm.get("headdim", 64)
    return {
        "hidden_size": d,
        "num_hidden_layers": content["n_layer"],
        "vocab_size": vocabulary,
        "expand": expand,
        "num_heads": expand * d // head_dim,
        "head_dim": head_dim,
        "n_groups": ssm.get("ngroups", 1),
        "state_size": ssm.get("d_state", 128),
        "conv_kernel": ssm.get("d_conv", 4),
        "chunk_size": ssm.get("chunk_size", 256),
        "tie_word_embeddings": content.get("tie_embeddings", True),
    }


def zamba2(content: Content) -> Size:
    """Of Zamba2 (arXiv:2411.15242)."""
    d, f, heads = content["hidden_size"], content["intermediate_size"], content["n_mamba_heads"]
    kinds, vocabulary = content["layers_block_type"], content["vocab_size"]
    layers, shared = len(kinds), sum(kind == "hybrid" for kind in kinds)
    inner, rank = content.get("mamba_expand", 2) * d, content.get("adapter_rank", 128)
    n_state, groups = content["mamba_d_state"], content.get("mamba_ngroups", 1)
    per_layer, matrices = _mixer(d, inner, groups * n_state, heads, content.get("mamba_d_conv", 4))
    # The shared block reads the stream beside the embeddings: 2d wide.
    width = 2 * d
    keys = width * (content.get("num_key_value_heads") or content["num_attention_heads"])
    keys //= content["num_attention_heads"]
    block = width * (width + 2 * keys) + width * d + 3 * d * f
    adapters = rank * (d + 2 * f)
    if content.get("use_shared_attention_adapter", False):
        adapters += 3 * 2 * rank * width
    every = d * d + adapters  # at each depth: the map back to the stream, and the adapters
    embeddings = vocabulary * d * (1 if content.get("tie_word_embeddings", True) else 2)
    blocks = min(content.get("num_mem_blocks", 1), shared)
    stored = layers * per_layer + blocks * (block + width + d) + shared * every
    return Size(
        parameters=embeddings + stored + d,
        multiplied=layers * matrices + shared * (block + every) + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        positions=content.get("max_position_embeddings", 4096),
        attention_layers=shared,
        attention_width=width,
        ffn_layers=shared,
        n_units=f,
        gated=True,
        state_layers=layers,
        heads=heads,
        head_dim=inner // heads,
        n_state=n_state,
        groups=groups,
        chunk=content.get("chunk_size", 256),
    )
