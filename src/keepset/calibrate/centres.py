"""Where the inputs of a site lie most densely: the score `centred` is their distance from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.hold.contexts import with_bos
from keepset.hold.inputs import watching
from keepset.sites import AnySite
from keepset.sites.ffn import Site

TOKENS = 1024
"""Of calibration text that centres are taken from, at most."""
_MOST = 2**17 - 1
"""Numbers of a site that its mode is taken of: evenly thinned out beyond. It is a prime, so that
steps do not fall on the same units at every token."""


def collect_centres(
    model: nn.Module, sites: Sequence[AnySite], blocks: Tensor, *, bos: int | None = None
) -> dict[str, float]:
    """The mode of the inputs of every site, over all of its units and tokens.

    SCAP's mode-centring (arXiv:2412.07174): a unit that is left out takes the mode in the place of
    zero, which costs a decoded token nothing, since W c is known beforehand. The first token of a
    context, which runs dense, is left out.

    Args:
        model: A causal language model in eval mode.
        sites: Its sites; those that are not inputs of linear maps are passed over.
        blocks: (n_blocks, tokens) int64 calibration token ids; the first `TOKENS` are run.
        bos: The token that is put before every block.

    Returns:
        Site key -> mode, as the dtype of the model has it.

    Raises:
        ConfigError: blocks of one token, which runs dense.
        ModelError: an input is NaN or infinite; the message names the site.

    Example:
        >>> from keepset import collect_centres, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> collect_centres(model, find_sites(model), blocks)["ffn.000"]  # ReLU's zeros
        0.0
    """
    if blocks.shape[1] + (bos is not None) < 2 or not len(blocks):
        raise ConfigError("centres are taken on calibration text: give blocks of 2 tokens or more")
    inputs = [site for site in sites if isinstance(site, Site)]
    parts: dict[str, list[Tensor]] = {site.key: [] for site in inputs}

    def action(site: Site, h: Tensor) -> None:
        if not bool(torch.isfinite(h).all()):
            raise ModelError(
                f"NaN or infinity in the activations of {site.name}; try dtype: float32"
            )
        parts[site.key].append(h[:, 1:].flatten().cpu())

    device = next(model.parameters()).device
    few = blocks[: max(1, TOKENS // blocks.shape[1])]
    with watching(model, inputs, action), torch.inference_mode():
        for rows in few.split(4):
            model(input_ids=with_bos(rows, bos).to(device), use_cache=False)
    return {key: mode(torch.cat(values)) for key, values in parts.items()}


def mode(values: Tensor) -> float:
    """The half-sample mode of some numbers (Robertson and Cryer 1974): no width is to be chosen.

    Of sorted numbers the half that lies closest together is taken, again and again; of equals the
    first.

    Args:
        values: (n,) finite, n >= 1.
    """
    n = min(len(values), _MOST)
    sample = values[torch.arange(n) * len(values) // n].double().sort().values
    while len(sample) > 2:
        half = (len(sample) + 1) // 2
        start = int((sample[half - 1 :] - sample[: len(sample) - half + 1]).argmin())
        sample = sample[start : start + half]
    return float(sample.mean().to(values.dtype))
