"""Where each model family keeps its FFN.

A family is known by its `config.model_type`. Most families need one word or line in `_FAMILIES`:
where the down projection sits in a decoder layer, and which modules produce its input. A family
whose layers differ needs a function, registered with `@adapter`, that returns the layout of a
layer. `find_sites` checks every layout against the real modules, so a wrong line fails at once
instead of measuring the wrong thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from keepset.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Where the FFN of one decoder layer sits; module paths are relative to the layer.

    Attributes:
        down: the down projection.
        up: the modules whose outputs make h, unit by unit; () when they are not all that makes
            it. The single module of a gated FFN is gate and up fused, one after the other.
        gated: whether h = act(gate(x)) * up(x).
        activation: its name, where the configuration has no key for it.
    """

    down: str
    up: tuple[str, ...]
    gated: bool = False
    activation: str | None = None


Adapter = Callable[[nn.Module, Any], Layout | None]

_GATED = Layout("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), gated=True)
_FUSED = Layout("mlp.down_proj", ("mlp.gate_up_proj",), gated=True)
_PLAIN = Layout("mlp.down_proj", ("mlp.up_proj",))
_MLP_FC = Layout("mlp.fc2", ("mlp.fc1",))
_LAYER_FC = Layout("fc2", ("fc1",))
_C_PROJ = Layout("mlp.c_proj", ("mlp.c_fc",))
_FC_OUT = Layout("mlp.fc_out", ("mlp.fc_in",))
_FEED_FORWARD = Layout(
    "feed_forward.down_proj", ("feed_forward.gate_proj", "feed_forward.up_proj"), gated=True
)
_DENSE = Layout("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",))

_FAMILIES: dict[Layout, str] = {
    _GATED: "cohere cohere2 diffllama exaone4 gemma gemma2 gemma3_text granite llama mistral olmo"
    " olmo2 olmo3 qwen2 qwen3 seed_oss smollm3 stablelm",
    _FUSED: "glm glm4 phi3",
    _PLAIN: "apertus arcee nemotron",
    _MLP_FC: "nanochat phi",
    _LAYER_FC: "biogpt opt xglm",
    _C_PROJ: "gpt2 gpt_bigcode gpt_neo starcoder2",
    _FC_OUT: "codegen gptj",
    _FEED_FORWARD: "bamba falcon_h1",
    _DENSE: "falcon gpt_neox persimmon",
    Layout("ffn.down_proj", ("ffn.up_proj",), activation="gelu"): "mpt",
}

LAYOUTS: dict[str, Layout] = {
    family: layout for layout, families in _FAMILIES.items() for family in families.split()
}
"""The families whose layers are all alike, by `config.model_type`."""

ADAPTERS: dict[str, Adapter] = {}
"""The families that need a function, by `config.model_type`."""

WITHOUT_FFN = frozenset({"falcon_mamba", "mamba", "mamba2"})
"""Families known to have no FFN: their sites are an empty list, not an error."""


def adapter(*model_types: str) -> Callable[[Adapter], Adapter]:
    """Register a function (decoder layer, text config) -> Layout or None for `model_types`."""

    def register(function: Adapter) -> Adapter:
        ADAPTERS.update(dict.fromkeys(model_types, function))
        return function

    return register


@adapter("bloom")
def _bloom(_layer: nn.Module, config: Any) -> Layout:
    if config.pretraining_tp > 1 and config.slow_but_exact:
        raise ModelError("bloom: slow_but_exact bypasses the down projection; set it to false")
    return Layout(_DENSE.down, _DENSE.up, activation="gelu_pytorch_tanh")


@adapter("zamba2")
def _zamba2(layer: nn.Module, _config: Any) -> Layout | None:
    if not hasattr(layer, "shared_transformer"):
        return None
    return Layout("shared_transformer.feed_forward.down_proj", (), gated=True)


@adapter("granitemoehybrid")
def _granite_hybrid(_layer: nn.Module, config: Any) -> Layout:
    if getattr(config, "num_local_experts", 0):
        raise ModelError(
            "granitemoehybrid: mixtures of experts are not supported; choose a dense model"
        )
    return Layout("shared_mlp.output_linear", ("shared_mlp.input_linear",), gated=True)


@adapter("nemotron_h")
def _nemotron_h(layer: nn.Module, _config: Any) -> Layout | None:
    kind = getattr(layer, "block_type", None)
    if kind == "moe":
        raise ModelError("nemotron_h: mixtures of experts are not supported; choose a dense model")
    if kind != "mlp":
        return None
    return Layout("mixer.down_proj", ("mixer.up_proj",), activation="relu2")
