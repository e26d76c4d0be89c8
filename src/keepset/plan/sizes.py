"""How large models are, from a checkpoint's config.json or a table: no weights, and no torch.

The workflow asks at every start, so nothing here takes time. Families without a formula here are
for `keepset.plan.bill`, which builds the model on the meta device.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from keepset.settings import Config, Model

TABLE = Path(__file__).with_name("sizes.csv")

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """What a forward pass costs depends on these.

    Attributes:
        parameters: Stored numbers; tied weights count once.
        multiplied: Entries of weight matrices that one token is multiplied with: a block that
            serves several depths counts at each, the output layer counts, embeddings do not.
        d_model: Width.
        vocabulary: Rows of the output layer.
        positions: Longest text; 0 where there is no limit.
        attention_layers: Layers with attention.
        attention_width: Heads x head dim of one of them.
        ffn_layers: Feed-forward sites.
        n_units: Neurons of one of them.
        gated: Whether it has a gate beside the up projection.
        state_layers: Layers with a Mamba-2 state.
        heads: Heads of such a layer.
        head_dim: Rows of a head's state.
        n_state: Columns of a head's state.
        groups: Groups of heads that share B and C.
        chunk: Tokens that the model's own scan takes at a time.
    """

    parameters: int
    multiplied: int
    d_model: int
    vocabulary: int
    positions: int = 0
    attention_layers: int = 0
    attention_width: int = 0
    ffn_layers: int = 0
    n_units: int = 0
    gated: bool = False
    state_layers: int = 0
    heads: int = 0
    head_dim: int = 0
    n_state: int = 0
    groups: int = 0
    chunk: int = 0

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


def _opt(content: Content) -> Size:
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


def _llama(content: Content) -> Size:
    d, f, layers = (
        content["hidden_size"],
        content["intermediate_size"],
        content["num_hidden_layers"],
    )
    heads, vocabulary = content["num_attention_heads"], content["vocab_size"]
    head_dim = content.get("head_dim") or d // heads
    queries = heads * head_dim
    keys = (content.get("num_key_value_heads") or heads) * head_dim
    matrices = layers * (d * (queries + 2 * keys) + queries * d + 3 * d * f)
    biases = queries + 2 * keys if content["model_type"] == "qwen2" else 0
    embeddings = vocabulary * d * (1 if content.get("tie_word_embeddings", False) else 2)
    return Size(
        parameters=embeddings + matrices + layers * (biases + 2 * d) + d,
        multiplied=matrices + vocabulary * d,
        d_model=d,
        vocabulary=vocabulary,
        positions=content["max_position_embeddings"],
        attention_layers=layers,
        attention_width=queries,
        ffn_layers=layers,
        n_units=f,
        gated=True,
    )


def _mixer(d: int, inner: int, groups_by_state: int, heads: int, kernel: int) -> tuple[int, int]:
    """(parameters with the layer's norm, entries of matrices) of a Mamba-2 layer without biases."""
    matrices = d * (2 * inner + 2 * groups_by_state + heads) + inner * d
    convolution = (inner + 2 * groups_by_state) * (kernel + 1)
    return matrices + convolution + 3 * heads + inner + d, matrices


def _mamba2(content: Content) -> Size:
    d, layers, vocabulary = (
        content[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    heads, head_dim = content["num_heads"], content["head_dim"]
    groups, n_state = content["n_groups"], content["state_size"]
    own, matrices = _mixer(d, heads * head_dim, groups * n_state, heads, content["conv_kernel"])
    embeddings = vocabulary * d * (1 if content.get("tie_word_embeddings", False) else 2)
    return Size(
        parameters=embeddings + layers * own + d,
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


def _original(content: Content) -> Size:
    """The package mamba_ssm's config.json (see `keepset.models.mamba_ssm`)."""
    ssm, d = content["ssm_cfg"], content["d_model"]
    head_dim = ssm.get("headdim", 64)
    multiple = content.get("pad_vocab_size_multiple", 1)
    return _mamba2(
        {
            "hidden_size": d,
            "num_hidden_layers": content["n_layer"],
            "vocab_size": -(-content["vocab_size"] // multiple) * multiple,
            "num_heads": ssm.get("expand", 2) * d // head_dim,
            "head_dim": head_dim,
            "n_groups": ssm.get("ngroups", 1),
            "state_size": ssm.get("d_state", 128),
            "conv_kernel": ssm.get("d_conv", 4),
            "chunk_size": ssm.get("chunk_size", 256),
            "tie_word_embeddings": content.get("tie_embeddings", True),
        }
    )


def _zamba2(content: Content) -> Size:
    d, f, heads = content["hidden_size"], content["intermediate_size"], content["n_mamba_heads"]
    kinds, vocabulary = content["layers_block_type"], content["vocab_size"]
    layers, shared = len(kinds), sum(kind == "hybrid" for kind in kinds)
    inner, rank = content.get("mamba_expand", 2) * d, content.get("adapter_rank", 128)
    n_state, groups = content["mamba_d_state"], content.get("mamba_ngroups", 1)
    own, matrices = _mixer(d, inner, groups * n_state, heads, content.get("mamba_d_conv", 4))
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
    return Size(
        parameters=embeddings + layers * own + blocks * (block + width + d) + shared * every + d,
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


_FAMILIES: dict[str, Callable[[Content], Size]] = {
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "mamba2": _mamba2,
    "zamba2": _zamba2,
}


def from_config(content: Content) -> Size | None:
    """The size of the model that a config.json describes.

    Args:
        content: Of transformers' config.json, or of the package mamba_ssm's.

    Returns:
        None where the family has no formula here, or a key is not there that it needs.
    """
    if "ssm_cfg" in content and "model_type" not in content:
        formula: Callable[[Content], Size] | None = _original
    else:
        formula = _FAMILIES.get(content.get("model_type", ""))
    # Biases that these formulas do not count.
    unusual = ("attention_bias", "mlp_bias", "use_bias", "add_bias_linear")
    if formula is None or any(content.get(key) for key in unusual):
        return None
    try:
        return formula(content)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


@cache
def table() -> dict[str, Size]:
    """Hub id -> size, of the models of config/paper.yaml."""
    kinds = {field.name: field.type for field in fields(Size)}
    found = {}
    with TABLE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            values: dict[str, Any] = {
                name: row[name] == "true" if kinds[name] == "bool" else int(row[name])
                for name in kinds
            }
            found[row["hub"]] = Size(**values)
    return found


def config_file(config: Config, name: str) -> Path | None:
    """The config.json of a model, where it lies on this machine; None where it does not."""
    model = config.all_models()[name]
    converted = Path("results") / config.study / name / "checkpoint"
    folders = [converted, _snapshot(model), Path(model.path) if model.path else None]
    files = [folder.expanduser() / "config.json" for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def _snapshot(model: Model) -> Path | None:
    """Where the hub's cache keeps the model's revision."""
    if model.hub is None:
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cached / f"models--{model.hub.replace('/', '--')}"
    revision = model.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return repository / "snapshots" / commit


def read_content(file: Path) -> dict[str, Any]:
    """The content of a config.json; empty where it is damaged, which preparing the model says."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def size_of(config: Config, name: str) -> Size | None:
    """The size of a configured model, from its config.json or the table; None where unknown."""
    file = config_file(config, name)
    found = from_config(read_content(file)) if file is not None else None
    hub = config.all_models()[name].hub
    return found or (table().get(hub) if hub is not None else None)
