"""Start as an induction circuit, so that small models recall within a small budget.

What answers "Recall: Anna" after "Remember: Anna ring, Paul key." is an induction circuit (Olsson
et al. 2022, arXiv:2209.11895): a first layer copies to every token what its previous token was. The
next layer looks for the position whose previous token is the present one, and copies its token.
Training finds the circuit late, by a sudden jump. Here the weights start near it, in the manner of
mimetic initialisation (Trockman and Kolter 2023, arXiv:2305.09828; for state spaces Trockman et al.
2024, arXiv:2410.11135): in attention two layers, and in Mamba-2 one, whose convolution looks one
step back. The architecture stays as it is, and training is free to undo the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from keepset.errors import ConfigError
from keepset.sites.families import FAMILIES

_EMBEDDING = 0.1
"""Standard deviation of the embeddings; tied to the output, it makes logits of about one."""
_LOOK = 8.0
"""How far the logit of the right position is above others, in both heads: it gets nearly all of
the attention."""
_ROTARY_FREQUENCIES = (1.0, 0.8, 0.6, 0.5, 0.4)
"""Weights of the fastest rotary frequencies; together they tell one step back from all others."""
_POSITION = 2.0
"""Size of the entries for positions relative to those for tokens, where positions are embedded."""
_STEPS = (0.001, 0.1)
"""Smallest and largest time step at the start; a head forgets by exp(-A x step) at each token."""
_CODE = 2.0
"""Standard deviation of B and C before SiLU. One such deviation is subtracted, so that few of their
entries are far from zero, and those of different tokens hardly overlap."""


@dataclass(frozen=True)
class _Attention:
    """One layer's projections, (out, in) each."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    heads: int

    @property
    def width(self) -> int:
        return self.o.out_features

    @property
    def head(self) -> int:
        return self.q.out_features // self.heads


@torch.no_grad()
def start_induction(model: PreTrainedModel, seed: int) -> None:
    """Set the weights of the circuit, in place.

    Args:
        model: Freshly initialised; of a family whose record names a start. One with attention
            alone needs two layers or more, and as many key heads as query heads.
        seed: Of the random directions.

    Raises:
        ConfigError: the model's family has no start, or the model is too small.
    """
    starts = {name: family.start for name, family in FAMILIES.items() if family.start}
    model_type = model.config.model_type
    if model_type not in starts:
        raise ConfigError(
            f"induction: not known for a {model_type}; known for {', '.join(sorted(starts))}"
        )
    start = resolve_name(starts[model_type])
    start(model.base_model, model.config, torch.Generator().manual_seed(seed))


def start_mamba2(body: Any, _: PreTrainedConfig, generator: Generator) -> None:
    """The first layer's state."""
    _start_state(body.layers[0].mixer, generator)


def start_zamba2(body: Any, _: PreTrainedConfig, generator: Generator) -> None:
    """The first Mamba-2 layer. The shared block starts at zero: its noise would hide the rest."""
    layers = body.layers
    for layer in layers:
        if hasattr(layer, "linear"):
            layer.linear.weight.zero_()
    first = layers[0]
    _start_state(first.mamba_decoder.mamba if hasattr(first, "linear") else first.mamba, generator)


def _start_state(mixer: Any, generator: Generator) -> None:
    """Write under the previous token, read under the present one."""
    project, convolution = mixer.in_proj.weight, mixer.conv1d
    inner = mixer.intermediate_size
    n = (convolution.weight.shape[0] - inner) // 2  # entries of B, and of C
    code = torch.randn(n, project.shape[1], generator=generator) * _CODE
    code /= math.sqrt(project.shape[1])
    # Rows of in_proj: gate, x, B, C, dt. Channels of the convolution: x, B, C.
    project[2 * inner : 2 * (inner + n)] = code.repeat(2, 1)
    write, read = slice(inner, inner + n), slice(inner + n, None)
    convolution.weight[inner:] = 0.0
    convolution.weight[write, 0, -2] = 1.0
    convolution.weight[read, 0, -1] = 1.0
    convolution.bias[inner:] = -_CODE


def start_qwen3_5(body: Any, _: PreTrainedConfig, generator: Generator) -> None:
    """The first layer's delta rule. All layers keep what they hold for tens of tokens.

    transformers leaves dt_bias at 1, where most heads forget within a token; it is drawn here as in
    Mamba-2 and in the delta rule's own code (flash-linear-attention).
    """
    mixers = [layer.linear_attn for layer in body.layers if hasattr(layer, "linear_attn")]
    for mixer in mixers:
        spread = torch.rand(len(mixer.dt_bias), generator=generator)
        step = _STEPS[0] * (_STEPS[1] / _STEPS[0]) ** spread
        mixer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
    project, convolution = mixers[0].in_proj_qkv.weight, mixers[0].conv1d.weight
    n = mixers[0].key_dim
    code = torch.randn(n, project.shape[1], generator=generator) * _CODE
    code /= math.sqrt(project.shape[1])
    project[: 2 * n] = code.repeat(2, 1)  # queries, keys
    convolution[: 2 * n] = 0.0
    convolution[:n, 0, -1] = 1.0
    convolution[n : 2 * n, 0, -2] = 1.0


def _check(config: PreTrainedConfig) -> None:
    """Refuse a model whose first two layers of attention cannot hold the circuit.

    Raises:
        ConfigError: what to change.
    """
    if config.num_hidden_layers < 2:
        raise ConfigError("induction: takes two layers; raise num_hidden_layers")
    heads = config.num_attention_heads
    if getattr(config, "num_key_value_heads", heads) != heads:
        raise ConfigError("induction: num_key_value_heads must equal num_attention_heads")
    if config.hidden_size % (2 * heads) or heads < 2:
        raise ConfigError("induction: takes two attention heads or more, of an even width")


def start_qwen2(body: Any, config: PreTrainedConfig, generator: Generator) -> None:
    """Rotary positions: biases of queries and keys alone make a head look one step back."""
    _start_rotary(body, config, generator)
    body.layers[0].mlp.down_proj.weight.zero_()  # its noise would hide the rest


def start_qwen3_moe(body: Any, config: PreTrainedConfig, generator: Generator) -> None:
    """The same; here queries and keys are normalised, and the norms' weights set their size."""
    if not config.attention_bias:
        raise ConfigError("induction: attention_bias must be true")
    first, second = _start_rotary(body, config, generator)
    norms = [(layer.self_attn.q_norm, layer.self_attn.k_norm) for layer in body.layers[:2]]
    for norm, linear in zip(norms[0], (first.q, first.k), strict=True):
        norm.weight.fill_(float(linear.bias.square().mean().sqrt()))
    for norm in norms[1]:
        norm.weight.fill_(_look_size(second.head))
    body.layers[0].mlp.experts.down_proj.zero_()  # its noise would hide the rest


def _start_rotary(
    body: Any, config: PreTrainedConfig, generator: Generator
) -> tuple[_Attention, _Attention]:
    """Set the embeddings and the first two layers' attention; returns these two."""
    _check(config)
    heads = config.num_attention_heads
    first, second = (
        _Attention(layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj, heads)
        for layer in (layer.self_attn for layer in body.layers[:2])
    )
    body.embed_tokens.weight.normal_(0.0, _EMBEDDING, generator=generator)
    theta = config.rope_parameters["rope_theta"]
    q, k = _rotary_step(first.head, theta, config.max_position_embeddings)
    first.q.bias.copy_(q.repeat(first.heads))
    first.k.bias.copy_(k.repeat(first.heads))
    _finish(first, second, torch.ones(first.width), _EMBEDDING, generator)
    return first, second


def start_opt(body: Any, config: PreTrainedConfig, generator: Generator) -> None:
    """Embedded positions: sinusoids in separate entries, which the first layer's heads read."""
    _check(config)
    if config.word_embed_proj_dim != config.hidden_size:
        raise ConfigError("induction: word_embed_proj_dim must equal hidden_size")
    decoder = body.decoder
    first, second = (
        _Attention(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.num_heads)
        for layer in (layer.self_attn for layer in decoder.layers[:2])
    )
    n, width = first.head, first.width
    tokens = torch.ones(width)
    tokens[:n] = 0.0
    deviation = _EMBEDDING * math.sqrt(width / (width - n))
    decoder.embed_tokens.weight.normal_(0.0, deviation, generator=generator).mul_(tokens)
    norm = _sinusoidal_step(first, decoder.embed_positions.weight)
    decoder.layers[0].fc2.weight.zero_()  # its noise would hide the rest
    _finish(first, second, tokens, norm, generator)


def _finish(
    first: _Attention, second: _Attention, tokens: Tensor, norm: float, generator: Generator
) -> None:
    """Set what the first layer copies, and all of the second layer's attention.

    Args:
        first: Looks one step back.
        second: The next layer.
        tokens: (width,) 1 where an entry represents tokens, 0 where it represents positions.
        norm: Root mean square of the first layer's input.
        generator: Of the directions.
    """
    width = first.width
    entries = tokens.bool().nonzero()
    # The previous token is rotated, so that it is not confused with the present one.
    turn = torch.zeros(width, width)
    turn[entries, entries.T] = _orthogonal(len(entries), generator)
    mix = math.sqrt(norm) * _orthogonal(width, generator)
    first.v.weight.copy_(mix)
    first.o.weight.copy_(turn @ mix.T)
    look = _orthogonal(width, generator) * tokens
    look *= _look_size(second.head)
    second.q.weight.copy_(look)
    second.k.weight.copy_(look @ turn.T)
    copy = math.sqrt(norm * math.sqrt(2)) * _orthogonal(width, generator) * tokens
    second.v.weight.copy_(copy)
    second.o.weight.copy_(copy.T)


def _look_size(head: int) -> float:
    """Size of queries and keys in the second layer, heads of `head` entries.

    Each part of a normalised sum of two has |part|^2 = width / 2; a head sees a share of it.
    """
    return math.sqrt(_LOOK * math.sqrt(head) / (head / 2))


def _rotary_step(head: int, theta: float, positions: int) -> tuple[Tensor, Tensor]:
    """Query and key, (head,) each, whose logit is largest where the key is one step back."""
    frequencies = theta ** (-torch.arange(head // 2) * 2 / head)
    weights = torch.zeros(head // 2)
    n = min(len(_ROTARY_FREQUENCIES), head // 2)
    weights[:n] = torch.tensor(_ROTARY_FREQUENCIES[:n])
    steps = torch.arange(1, positions)[:, None]
    behind = (weights * (1 - torch.cos(frequencies * steps))).sum(dim=1).min()
    size = (weights * _LOOK * math.sqrt(head) / behind).sqrt()
    query = torch.cat([size * frequencies.cos(), -size * frequencies.sin()])
    return query, torch.cat([size, torch.zeros(head // 2)])


def _sinusoidal_step(first: _Attention, table: Tensor) -> float:
    """Set the embedding of positions, and the heads that use it to look one step back.

    Args:
        first: The first layer.
        table: (positions, width), the embedding of positions; overwritten.

    Returns:
        Root mean square of the sum of the embeddings of tokens and positions.
    """
    n, size = first.head, _POSITION * _EMBEDDING
    sinusoids, back = _sinusoids(len(table), n)
    table.zero_()[:, :n] = size * sinusoids
    norm = math.sqrt(_EMBEDDING**2 + size**2 * n / 2 / first.width)
    # The logit of a pair is gain^2 x (size / norm)^2 x the product of their sinusoids.
    product = sinusoids @ sinusoids[0]
    gain = norm / size * math.sqrt(_LOOK * math.sqrt(n) / float(product[0] - product[1:].max()))
    for linear, block in ((first.q, back), (first.k, torch.eye(n))):
        linear.weight.zero_()[:, :n] = (gain * block).repeat(first.heads, 1)
    return norm


def _sinusoids(positions: int, n: int) -> tuple[Tensor, Tensor]:
    """(positions, n) sines and cosines, and the (n, n) rotation to the position before."""
    pairs = n // 2
    frequencies = math.pi / 2 * (2 / positions) ** (torch.arange(pairs) / max(1, pairs - 1))
    angles = torch.arange(positions)[:, None] * frequencies
    back = torch.zeros(n, n)
    sine = torch.arange(pairs)
    cosine = sine + pairs
    back[sine, sine] = back[cosine, cosine] = frequencies.cos()
    back[sine, cosine] = -frequencies.sin()
    back[cosine, sine] = frequencies.sin()
    return torch.cat([angles.sin(), angles.cos()], dim=1), back


def _orthogonal(n: int, generator: Generator) -> Tensor:
    """(n, n) a random rotation or reflection."""
    return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
