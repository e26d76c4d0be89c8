"""Static rules: the weights are cut; on a GPU a kernel path can run a cut block in two launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from keepset.decode.block import separable
from keepset.decode.whole import WholeBlock, WholeBlocks
from keepset.kernels.selection import Selection
from keepset.kernels.torch_ffn import neuron_major
from keepset.kernels.weights import FfnWeights
from keepset.sites.ffn import Site


@contextmanager
def cut_blocks(sites: Sequence[Site], paths: Counter[str], selection: Selection) -> Iterator[None]:
    """Let kernels run blocks that are cut already, where they are faster, up to 16 tokens.

    `paths` counts tokens x sites that kernels ran.
    """
    blocks = WholeBlocks("static", paths, selection)
    with ExitStack() as stack:
        for site in sites:
            if selection.may_use_triton("ffn", site.down_weight().device) and separable(site):
                rows = neuron_major(site.down_weight())
                block = WholeBlock(site, site.down.forward, _all_units, rows, blocks)
                stack.enter_context(block.standing_in())
        yield


def _all_units(x: Tensor, ffn: FfnWeights) -> Tensor:
    from keepset.kernels.triton_ffn import shared_set_decode

    return shared_set_decode(x, ffn, torch.arange(ffn.n, device=x.device))
