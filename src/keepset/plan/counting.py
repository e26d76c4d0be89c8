"""The size of every model of a study, also of those that have to be built to be counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from keepset.errors import ConfigError
from keepset.plan import sizes
from keepset.plan.sizes import Known
from keepset.settings import Config
from keepset.sites.size_formulas import DELTA_CHUNK, Size


def known_sizes(config: Config, results: Path) -> dict[str, Known]:
    """The size of every model of this run: from its config.json where it is at hand, or the table.

    Args:
        config: The study.
        results: The folder of its results.

    Raises:
        ConfigError: some models have neither; the message names them.
        ModelError: a model's configuration cannot be read, or its family is unknown.
    """
    known = {name: _known(config, name, results) for name in config.active_models()}
    missing = [
        f"models.{name}.hub: {config.all_models()[name].hub}"
        for name, size in known.items()
        if size is None
    ]
    if missing:
        raise ConfigError(
            f"not in the local cache, so that the size is not known: {'; '.join(missing)}. Run"
            " `snakemake --cores 1 models --configfile YOUR_CONFIG` (or `snakemake download`, or"
            " `hf download REPOSITORY config.json`) where there is a network, with this HF_HOME"
        )
    return {name: size for name, size in known.items() if size is not None}


def _known(config: Config, name: str, results: Path) -> Known | None:
    if (known := sizes.known_size(config, name, results)) is not None:
        return known
    model, path = config.all_models()[name], sizes.config_file(config, name, results)
    if path is None:
        if model.hub is not None:
            return None
        from keepset.models import sources

        path = sources.find(f"models.{name}", model).path
    return Known(size_by_building(name, path, code=model.trust_remote_code), str(path))


def size_by_building(name: str, path: Path, *, code: bool = False) -> Size:
    """The size of any model of transformers, by building it without weights.

    Args:
        name: The model's key in `models`, for messages.
        path: The checkpoint's folder, its config.json, or a GGUF file, whose head says what is in
            it.
        code: Whether Python code that came with the model may run.

    Raises:
        ModelError: transformers cannot build it, or keepset knows no sites for it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from keepset.models.checkpoint import CONFIG, explained

    file = path if path.is_file() else path / CONFIG
    extra = {"gguf_file": file.name} if file.name != CONFIG else {}
    with explained(f"models.{name}: cannot build the model of {file}"):
        config = AutoConfig.from_pretrained(
            file.parent, trust_remote_code=code, local_files_only=True, **extra
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    return size_of_model(model)


def size_of_model(model: Any) -> Size:
    """The size of a model that is built, perhaps on the meta device.

    Of routed experts, as many are multiplied as a token is routed to. Adapters that a shared block
    holds for every depth count at each of them: the number of multiplied weights of such models is
    at most what is returned.
    """
    from keepset.sites.experts import find_expert_sites
    from keepset.sites.ffn import find_ffn_sites
    from keepset.sites.state import find_state_sites

    config = model.config.get_text_config()
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    heads = getattr(config, "num_attention_heads", 0) or 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    size = Size(
        parameters=model.num_parameters(),
        multiplied=sum(map(_multiplied, modules)),
        d_model=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=getattr(config, "max_position_embeddings", 0) or 0,
        attention_layers=sum(type(m).__name__.endswith("Attention") for m in modules),
        attention_width=heads * head_dim,
    )
    for site in find_expert_sites(model):
        block: Any = site.block
        experts = sum(part.numel() for part in block.experts.parameters())
        multiplied = size.multiplied + experts * site.top_k // site.n_units
        size = replace(size, multiplied=multiplied)
    if ffn := find_ffn_sites(model):
        n_units, gated = max(site.n_units for site in ffn), any(site.gated for site in ffn)
        size = replace(size, ffn_layers=len(ffn), n_units=n_units, gated=gated)
    if states := find_state_sites(model):
        size = replace(
            size,
            state_layers=len(states),
            heads=states[0].n_heads,
            head_dim=states[0].head_dim,
            n_state=states[0].n_state,
            groups=states[0].n_groups,
            interacts=states[0].memory == "delta",
            chunk=DELTA_CHUNK
            if states[0].memory == "delta"
            else getattr(config, "chunk_size", 0) or 256,
        )
    return size


def _multiplied(module: Any) -> int:
    """Entries of the module's own weight matrix; 0 for embeddings, which are looked up."""
    from torch import nn

    weight: Any = getattr(module, "weight", None)
    matrix = getattr(weight, "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
    return int(weight.numel()) if matrix else 0
