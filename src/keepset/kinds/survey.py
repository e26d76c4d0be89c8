"""Every decoder-only family of the installed transformers: which sites it has (docs/FAMILIES.md).

Families are built on the meta device from their default configuration, so no weights are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from keepset.errors import KeepsetError
from keepset.kinds import KINDS, find_sites
from keepset.sites.experts import ExpertSite
from keepset.sites.families import FAMILIES
from keepset.sites.ffn import Site

_KINDS = [name for name in KINDS if name != "input"]
"""Inputs of linear maps are found by running a model: one on the meta device has no weights."""

_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer"
    " rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet"
    " xmod"
)
_DECODERS_OF_TWO = (
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet"
    " trocr"
)
EXCLUDED: dict[str, str] = {
    **dict.fromkeys(_ENCODERS.split(), "an encoder, or not causal by default"),
    **dict.fromkeys(_DECODERS_OF_TWO.split(), "the decoder of an encoder-decoder model"),
    **dict.fromkeys(
        ("moshi", "musicgen", "musicgen_melody", "whisper"), "a head for speech or sound"
    ),
    "git": "an encoder of captions for images",
}
"""Families that transformers registers as causal language models, and why they are left out."""

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
CORRECTIONS: dict[str, dict[str, Any]] = {
    **{name: {"head_dim": 128} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "dots1": {
        "n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
        "n_shared_experts": 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "nemotron": {"num_key_value_heads": 48},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
}  # fmt: skip
"""Keys of a configuration that its default leaves out, so that no model can be built from it."""


@dataclass(frozen=True)
class Surveyed:
    """What was found in one family.

    Attributes:
        family: Its model type.
        architecture: The class of the model; empty where none could be built.
        sites: Kind of site -> number of sites, at the default configuration.
        notes: Kind of site -> what its units can be: "cut", or why not.
        refusal: Why the family has no sites; None where it has.
    """

    family: str
    architecture: str
    sites: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None


def families() -> list[str]:
    """The decoder-only families of the installed transformers, in order of name."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(EXCLUDED))


def survey(names: Iterable[str] | None = None) -> list[Surveyed]:
    """Build each family on the meta device, and find its sites.

    Args:
        names: Families; all decoder-only ones if left out.
    """
    return [_one(name) for name in (families() if names is None else names)]


def _one(family: str) -> Surveyed:
    try:
        config = CONFIG_MAPPING[family](**CORRECTIONS.get(family, {}))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers' own code raises
        lines = str(error).strip().splitlines() or [""]
        reason = f"transformers cannot build it from its default configuration: {lines[-1].strip()}"
        return Surveyed(family, "", refusal=reason)
    architecture = type(model).__name__
    try:
        sites = find_sites(model, _KINDS)
    except KeepsetError as error:
        return Surveyed(family, architecture, refusal=str(error))
    if not sites:
        return Surveyed(family, architecture, refusal="no site of any kind was found")
    counts = Counter(site.kind for site in sites)
    notes = {kind: _note(model, kind, [s for s in sites if s.kind == kind]) for kind in counts}
    return Surveyed(family, architecture, counts, notes)


def _note(model: PreTrainedModel, kind: str, sites: list[Any]) -> str:
    if kind == "expert":
        refusals = [site.refusal for site in sites if isinstance(site, ExpertSite)]
        return next((f"refused: {reason}" for reason in refusals if reason), "cut")
    if kind == "ffn":
        dense = [site for site in sites if isinstance(site, Site) and type(site) is Site]
        routed = len(sites) - len(dense)
        words = "" if not dense else "cut" if all(site.up for site in dense) else "masked"
        return "; ".join(
            filter(None, (words, f"{routed} of routed experts, masked" * bool(routed)))
        )
    family = FAMILIES.get(model.config.get_text_config().model_type)
    memory = sites[0].memory
    cuttable = family is not None and family.state_size_key is not None
    return f"{memory}, {'cut' if cuttable else 'masked'}"


def markdown(rows: Iterable[Surveyed]) -> str:
    """The page of all families."""
    rows = list(rows)
    found = [row for row in rows if row.refusal is None]
    refused = [row for row in rows if row.refusal is not None]
    lines = [
        "# Families",
        "",
        "Generated by `keepset families --markdown`; do not edit.",
        "",
        f"transformers {transformers.__version__} registers {len(rows)} decoder-only families of"
        " causal language models.",
        f"keepset finds sites in {len(found)} of them, and refuses {len(refused)} by name. The"
        " numbers are those of the default",
        "configuration. *cut*: what a static rule leaves out is not computed, or can be cut out of"
        " the checkpoint;",
        "*masked*: it is computed, and left out. The neurons of all routed experts of a layer are"
        " one site;",
        "shared experts run whole. The inputs of all other linear maps of the decoder layers (kind"
        " `input`) are found in every",
        "one of them, by running it.",
        "",
        "| family | model | " + " | ".join(_KINDS) + " |",
        "|" + "---|" * (2 + len(_KINDS)),
    ]
    for row in found:
        cells = [
            f"{row.sites[kind]} ({row.notes[kind]})" if kind in row.sites else "" for kind in _KINDS
        ]
        lines.append(f"| {row.family} | {row.architecture} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", "", "| family | why |", "|---|---|"]
    lines += [f"| {row.family} | {_cell(row.refusal or '')} |" for row in refused]
    lines += ["", "## Left out", "", "| families | why |", "|---|---|"]
    reasons = dict.fromkeys(EXCLUDED.values())
    for reason in reasons:
        names = [name for name, why in EXCLUDED.items() if why == reason]
        lines.append(f"| {', '.join(sorted(names))} | {reason} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
