"""Recipes: every site has a rule of its own, and what a token leaves out is not read.

One kernel call chooses the units of a token and projects them, for all maps that read them, by
numba on a CPU and by Triton on a GPU; a feed-forward block with a rule at both its sites is one
step (`JoinedBlock`). Sites whose maps cannot be run so are masked. On a CPU all other linear maps,
the output layer among them, are read in the order of memory where that is faster than torch
(`TokenProjection`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.decode.choice import UnitChoice
from keepset.decode.inputs import SparseReaders
from keepset.decode.joined import (
    GatedBlock,
    block_of,
    can_choose_by_gate,
    first_of,
    joined_blocks,
)
from keepset.decode.layout import storable, unit_major
from keepset.decode.position import Position
from keepset.decode.token import TokenPaths, TokenProjection
from keepset.hold.gates import seeing_gates
from keepset.hold.inputs import rules_run_by, watching
from keepset.hold.slices import standing_forward
from keepset.kernels.selection import NUMBA, Selection
from keepset.kinds import find_sites
from keepset.sites.ffn import Site


def linear_sites(model: PreTrainedModel) -> list[Site]:
    """All sites that a recipe may name: neurons, and inputs of the other linear maps.

    Raises:
        ModelError: see `find_ffn_sites` and `find_input_sites`.
    """
    return find_sites(model, ["ffn", "input"])


@contextmanager
def sites_held(
    model: nn.Module,
    sites: Sequence[Site],
    choices: Mapping[str, UnitChoice],
    paths: Counter[str],
    selection: Selection,
) -> Iterator[None]:
    """Hold a choice at every site of `choices`.

    Args:
        model: The model.
        sites: All sites of its linear maps.
        choices: Site key -> what its tokens keep.
        paths: Counts tokens x sites by path.
        selection: Which kernels may run.
    """
    position = Position(counting=False)
    chosen = [site for site in sites if site.key in choices]
    alone = set(storable(sites))
    fast = [
        site
        for site in chosen
        if site in alone
        and not choices[site.key].reads_gate
        and _is_for_kernels(site.columns()[0], selection)
    ]
    masked = [site for site in chosen if site not in fast]
    # Masked too, as prompts are.
    by_gate = [
        site
        for site in masked
        if site in alone
        and choices[site.key].reads_gate
        and _is_for_numba(site.columns()[0], selection)
        and can_choose_by_gate(model, site)
    ]
    gates: dict[str, Tensor] = {}
    gated_blocks = TokenPaths("gate", paths, selection)
    groups = TokenPaths("recipe", paths, selection)
    others = TokenPaths("dense", Counter(), selection)

    def hold(site: Site, h: Tensor) -> Tensor:
        paths["masked"] += position.batch * position.tokens
        return choices[site.key].hold(h, position, gates.get(site.key))

    with ExitStack() as stack:
        stack.enter_context(position.following(model))
        rows = stack.enter_context(unit_major([*fast, *by_gate]))
        stack.enter_context(watching(model, masked, hold))
        gated = [site for site in masked if choices[site.key].reads_gate]
        stack.enter_context(seeing_gates(gated, gates))
        readers = {
            site.key: SparseReaders(site, choices[site.key], rows[site.key], position, groups)
            for site in fast
        }
        for one in readers.values():
            stack.enter_context(one.standing_in())
        for block in joined_blocks(model, readers):
            stack.enter_context(block.standing_in())
        for site in by_gate:
            module = block_of(model, site)
            assert module is not None  # by `can_choose_by_gate`
            first = first_of(site, readers)
            gated_block = GatedBlock(
                module, choices[site.key], rows[site.key], first, position, gated_blocks
            )
            stack.enter_context(gated_block.standing_in())
        taken = {reader for site in fast for reader, _ in site.readers}
        for module in model.modules():
            # Others may do more than a linear map, or keep their weights in another order.
            if type(module) is nn.Linear and module not in taken:
                weight = module.weight
                if weight.is_contiguous() and _is_for_numba(weight, selection):
                    dense = TokenProjection(module, position, others)
                    stack.enter_context(standing_forward(module, dense))
        groups.prepare()
        gated_blocks.prepare()
        others.prepare()
        yield


def _is_for_kernels(weight: Tensor, selection: Selection) -> bool:
    return _is_for_numba(weight, selection) or selection.may_use_triton("ffn", weight.device)


def _is_for_numba(weight: Tensor, selection: Selection) -> bool:
    return rules_run_by(selection, weight.device, weight.dtype) == NUMBA
