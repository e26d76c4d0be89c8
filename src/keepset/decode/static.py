"""Static rules: a prompt runs masked, and what follows it with cut weights.

The first token of a context is run dense, so a pass that begins with it needs all weights. On a GPU
a kernel path can run a cut block in two launches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.decode.block import separable
from keepset.decode.position import Position
from keepset.decode.whole import WholeBlock, WholeBlocks
from keepset.hold.inputs import watching
from keepset.hold.slices import cut_weights, in_place, sliceable
from keepset.hold.static import Static
from keepset.kernels.selection import Selection
from keepset.kernels.torch_ffn import neuron_major
from keepset.kernels.weights import FfnWeights
from keepset.rules.masks import Masks
from keepset.sites.ffn import Site


@contextmanager
def static_blocks(
    model: nn.Module, sites: Sequence[Site], masks: Masks, paths: Counter[str], selection: Selection
) -> Iterator[None]:
    """Hold one keep set on `sites`; it runs masked where units cannot be sliced.

    `paths` counts tokens x sites that kernels ran: blocks that are cut, where kernels are faster,
    up to 16 tokens.
    """
    cut = [site for site in sites if sliceable(site)]
    slices = cut_weights(cut, masks)
    with in_place(slices):
        blocks = _kernel_blocks(cut, paths, selection)
    position, static, masked = Position(counting=False), Static(masks), set(sites) - set(cut)
    decoding = ExitStack()
    held = False

    def on_forward(*_: Any) -> None:
        nonlocal held
        if position.opens:
            decoding.close()
        elif not held:
            decoding.enter_context(in_place(slices))
            for block in blocks:
                decoding.enter_context(block.standing_in())
        held = not position.opens

    def mask(site: Site, h: Tensor) -> Tensor | None:
        if position.opens:
            return static(site, h)
        return h * masks[site.key].to(h.device) if site in masked else None

    with ExitStack() as stack:
        stack.callback(decoding.close)
        stack.enter_context(position.following(model))
        stack.enter_context(model.register_forward_pre_hook(on_forward))
        stack.enter_context(watching(model, sites, mask))
        yield


def _kernel_blocks(
    sites: Sequence[Site], paths: Counter[str], selection: Selection
) -> list[WholeBlock]:
    """What can stand in for blocks whose weights are cut now."""
    blocks = WholeBlocks("static", paths, selection)
    return [
        WholeBlock(site, site.down.forward, _all_units, neuron_major(site.down_weight()), blocks)
        for site in sites
        if selection.may_use_triton("ffn", site.down_weight().device) and separable(site)
    ]


def _all_units(x: Tensor, ffn: FfnWeights) -> Tensor:
    from keepset.kernels.triton_ffn import shared_set_decode

    return shared_set_decode(x, ffn, torch.arange(ffn.n, device=x.device))
