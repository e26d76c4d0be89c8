"""The model families: where each keeps its FFN, and what else differs from one to another.

A family is known by its `config.model_type`. Adding one is one record here, or one call of
`register`. `find_sites` checks every layout against the real modules, so a wrong path fails at
once instead of measuring the wrong thing. A family without a record works too if its layers hold
exactly one of the layouts below.

Nothing here imports torch: the configuration and the plan read these records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keepset.errors import ModelError
from keepset.rules.kinds import KINDS
from keepset.sites import size_formulas as sizes

ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation")
"""Where a configuration may name the activation of the FFN."""


@dataclass(frozen=True)
class Layout:
    """Where the FFN of one decoder layer is; module paths are relative to the layer.

    Attributes:
        down: The down projection.
        up: The modules whose outputs make h, unit by unit; () when they are not all that makes
            it. The single module of a gated FFN is gate and up fused, one after the other.
        gated: Whether h = act(gate(x)) * up(x).
    """

    down: str
    up: tuple[str, ...]
    gated: bool = False


LayoutOf = Callable[[Any, Any], Layout | None]
"""(decoder layer, text config) -> layout; None for a layer without an FFN."""


@dataclass(frozen=True)
class Family:
    """What differs between families of models.

    Attributes:
        model_types: Its names as `config.model_type`, separated by spaces; several where they
            agree in all that follows.
        ffn: The layout of every layer, or a function where layers differ. None: the layers are
            compared with the layouts of all families.
        architecture: transformer (attention and FFNs), recurrent (states and no FFN) or hybrid.
        state_size_key: The key of the configuration that holds the number of its states' channels;
            None: they cannot be cut.
        size: (content of config.json) -> size; None: the model is built to be counted.
        start: The function that starts a training near an induction circuit, as "module:name". It
            sets the weights of (model without output layer, config, generator).
        activation: The activation of the FFN, where the configuration has no key for it.
        memory: What kind of state it has, e.g. mamba2; None where it has none that is read.
        experts: Whether its FFNs are routed: mixtures of experts.
        without: Kind of site -> why there are none, though the family has what could be one.
    """

    model_types: str
    ffn: Layout | LayoutOf | None = None
    architecture: Literal["transformer", "hybrid", "recurrent"] = "transformer"
    state_size_key: str | None = None
    size: sizes.Formula | None = None
    start: str | None = None
    activation: str | None = None
    memory: str | None = None
    experts: bool = False
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[Literal["ffn", "input", "expert", "state"], ...]:
        """The kinds of sites that a model of this family can have."""
        kinds = {
            "ffn": self.architecture != "recurrent",
            "input": True,
            "expert": self.experts,
            "state": self.memory is not None,
        }
        return tuple(kind for kind, there in kinds.items() if there)  # type: ignore[misc]


FAMILIES: dict[str, Family] = {}
"""Model type -> family."""


def no_sites(model: Any, kind: str) -> str:
    """What to say of a model that has no sites of a kind, and why where its family says."""
    config = getattr(model, "config", None)
    name = "" if config is None else config.get_text_config().model_type
    reason = FAMILIES[name].without.get(kind) if name in FAMILIES else None
    return f"the model has no {KINDS[kind].units}" + (f": {reason}" if reason else "")


def register(*families: Family) -> None:
    """Enter families, each under all of its model types."""
    for family in families:
        FAMILIES.update(dict.fromkeys(family.model_types.split(), family))


def known_layouts() -> list[Layout]:
    """The layouts of the families whose layers are all alike, each once."""
    return list(dict.fromkeys(f.ffn for f in FAMILIES.values() if isinstance(f.ffn, Layout)))


def _bloom(_layer: Any, config: Any) -> Layout:
    if config.pretraining_tp > 1 and config.slow_but_exact:
        raise ModelError("bloom: slow_but_exact bypasses the down projection; set it to false")
    return _DENSE


def _zamba2(layer: Any, _config: Any) -> Layout | None:
    if not hasattr(layer, "shared_transformer"):
        return None
    return Layout("shared_transformer.feed_forward.down_proj", (), gated=True)


def _nemotron_h(layer: Any, _config: Any) -> Layout | None:
    kind = getattr(layer, "block_type", None)
    return Layout("mixer.down_proj", ("mixer.up_proj",)) if kind == "mlp" else None


def _cpmant(_layer: Any, _config: Any) -> Layout:
    raise ModelError(
        "cpmant: it puts tokens of its own before every text, so that what a rule holds for a"
        " token is not known; choose another family"
    )


def _mllama(layer: Any, _config: Any) -> Layout | None:
    # Layers that read an image are passed over where there is none.
    return None if hasattr(layer, "cross_attn") else _GATED


def _zamba(layer: Any, _config: Any) -> Layout | None:
    if not hasattr(layer, "shared_transf"):
        return None
    block = "shared_transf.feed_forward"
    return Layout(f"{block}.down_proj", (f"{block}.gate_proj", f"{block}.up_proj"), gated=True)


_W = Layout("feed_forward.w2", ("feed_forward.w1", "feed_forward.w3"), gated=True)
_MLP_BLOCK = Layout("mlp_block.down_proj", ("mlp_block.gate_proj", "mlp_block.up_proj"), gated=True)
_GATED = Layout("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj"), gated=True)
_FEED_FORWARD = Layout(
    "feed_forward.down_proj", ("feed_forward.gate_proj", "feed_forward.up_proj"), gated=True
)
_SHARED_MLP = Layout("shared_mlp.output_linear", ("shared_mlp.input_linear",), gated=True)
_GATE_UP = Layout("mlp.down_proj", ("mlp.gate_up_proj",), gated=True)
_FC = Layout("fc2", ("fc1",))
_DENSE = Layout("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",))
_INDUCTION = "keepset.train.induction:start_"


register(
    # Transformers.
    Family(
        "afmoe aria_text axk1 axk2 beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1"
        " ernie4_5_moe exaone_moe flex_olmo flint glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss"
        " granitemoe granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 kolibri1 laguna"
        " mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text mixtral olmoe qwen2_moe solar_open",
        experts=True,
    ),
    Family(
        "cohere cohere2 cohere_compass_text cwm diffllama doge emu3_text_model ernie4_5 exaone4"
        " gemma gemma2 gemma3_text gemma4_text gemma4_unified_text granite granite_swa helium"
        " hunyuan_v1_dense hyperclovax internlm3 iquestcoder minicpm3 ministral ministral3 olmo"
        " olmo2 olmo3 qwen3 seed_oss smollm3 stablelm vaultgemma youtu",
        _GATED,
    ),
    Family("llama mistral", _GATED, size=sizes.llama),
    Family("qwen2", _GATED, size=sizes.qwen2, start=f"{_INDUCTION}qwen2"),
    Family("qwen3_moe", None, size=sizes.qwen3_moe, start=f"{_INDUCTION}qwen3_moe", experts=True),
    Family(
        "glm glm4 phi3 phi4_multimodal", Layout("mlp.down_proj", ("mlp.gate_up_proj",), gated=True)
    ),
    Family("apertus arcee jais2 nemotron", Layout("mlp.down_proj", ("mlp.up_proj",))),
    Family("nanochat phi", Layout("mlp.fc2", ("mlp.fc1",))),
    Family("biogpt xglm", _FC),
    Family("opt", _FC, size=sizes.opt, start=f"{_INDUCTION}opt"),
    Family("gpt2 gpt_bigcode gpt_neo openai-gpt starcoder2", Layout("mlp.c_proj", ("mlp.c_fc",))),
    Family("codegen gptj", Layout("mlp.fc_out", ("mlp.fc_in",))),
    Family("falcon gpt_neox gpt_neox_japanese persimmon", _DENSE),
    Family("bloom", _bloom, activation="gelu_pytorch_tanh"),
    Family("mpt", Layout("ffn.down_proj", ("ffn.up_proj",)), activation="gelu"),
    Family("cpmant", _cpmant),
    Family("ctrl", Layout("ffn.2", ("ffn.0",)), activation="relu"),
    # Its sparse activation takes mean and spread over all neurons, so that none can be cut away.
    Family("gemma3n_text", Layout("mlp.down_proj", (), gated=True)),
    Family("lfm2 lfm3", _W, activation="silu"),
    Family("lfm2_moe", _W, activation="silu", experts=True),
    Family("modernbert-decoder", Layout("mlp.Wo", ("mlp.Wi",), gated=True)),
    # Attention, FFNs and recurrent states.
    Family("bamba falcon_h1", _FEED_FORWARD, "hybrid", "mamba_d_state", memory="mamba2"),
    Family("granitemoehybrid", _SHARED_MLP, "hybrid", "mamba_d_state", memory="mamba2"),
    Family("jamba", None, "hybrid", "mamba_d_state", memory="selective", experts=True),
    Family("zamba", _zamba, "hybrid", "mamba_d_state", memory="selective"),
    # Heads of attention have the size of keys there, so that channels cannot be cut.
    Family("minimax", None, "hybrid", memory="lightning", experts=True),
    # Gates read what is written to other channels.
    Family("recurrent_gemma", _MLP_BLOCK, "hybrid", memory="rglru"),
    Family(
        "rwkv",
        Layout("feed_forward.value", ("feed_forward.key",)),
        "hybrid",
        without={
            "state": "what RWKV reads of a channel is a quotient of two states, so that a channel"
            " that is forgotten has no value"
        },
    ),
    Family(
        "xlstm",
        Layout("ffn.proj_down", ("ffn.proj_up_gate", "ffn.proj_up"), gated=True),
        "hybrid",
        without={
            "state": "what xLSTM reads is divided by a sum over all channels, so that leaving one"
            " out scales what is read of the others"
        },
    ),
    Family(
        "nemotron_h", _nemotron_h, "hybrid", "ssm_state_size", activation="relu2", memory="mamba2"
    ),
    Family(
        "zamba2",
        _zamba2,
        "hybrid",
        "mamba_d_state",
        sizes.zamba2,
        f"{_INDUCTION}zamba2",
        memory="mamba2",
    ),
    Family("olmo_hybrid", _GATED, "hybrid", "linear_key_head_dim", memory="delta"),
    Family(
        "qwen3_5_text",
        _GATED,
        "hybrid",
        "linear_key_head_dim",
        sizes.qwen3_5,
        f"{_INDUCTION}qwen3_5",
        memory="delta",
    ),
    Family(
        "qwen3_next qwen3_5_moe_text",
        None,
        "hybrid",
        "linear_key_head_dim",
        memory="delta",
        experts=True,
    ),
    # Keys and values have one size there, so that channels cannot be cut.
    Family("bailing_hybrid kimi_linear", None, "hybrid", memory="delta", experts=True),
    # Recurrent states alone.
    Family("falcon_mamba mamba", None, "recurrent", "state_size", memory="selective"),
    Family(
        "mamba2",
        None,
        "recurrent",
        "state_size",
        sizes.mamba2,
        f"{_INDUCTION}mamba2",
        memory="mamba2",
    ),
)
