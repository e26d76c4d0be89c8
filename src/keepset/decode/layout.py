"""Weights stored unit by unit, so that a unit that is left out is one piece of memory not read.

transformers stores the weights of a linear map output by output. Here they are stored once, the
other way round, those of all maps that read one tensor side by side, and the parameters become
views of that. Values and shapes stay: everything else reads the parameters as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from keepset.sites.ffn import Site

_MAPS = (nn.Linear, Conv1D)


def storable(sites: Sequence[Site]) -> list[Site]:
    """Those of `sites`, all of a model, whose maps are plain, and read nothing else.

    Depths may share all the weights of a site, but not the modules, nor some of the weights.
    """
    calls = Counter(reader for site in sites for reader, _ in site.readers)
    owners: dict[int, set[tuple[int, ...]]] = {}
    for site in sites:
        for reader, _ in site.readers:
            owners.setdefault(id(_weight(reader)), set()).add(_key(site))

    def is_storable(site: Site) -> bool:
        return site.n_calls == 1 and all(
            # A subclass may do more than a linear map.
            type(reader) in _MAPS and calls[reader] == 1 and len(owners[id(_weight(reader))]) == 1
            for reader, _ in site.readers
        )

    return [site for site in sites if is_storable(site)]


@contextmanager
def unit_major(sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Store the weights of `sites`, which are `storable`, unit by unit.

    Parameters keep their identity and get other storage: what holds a view of the old one keeps
    that alive. The usual layout is put back on exit.

    Yields:
        Site key -> (n_units, outputs) weights of all its maps, in order of execution.
    """
    stored: dict[tuple[int, ...], Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            if _key(site) not in stored:
                stored[_key(site)] = stack.enter_context(_stored(site))
        yield {site.key: stored[_key(site)] for site in sites}


@contextmanager
def _stored(site: Site) -> Iterator[Tensor]:
    modules: list[Any] = [reader for reader, _ in site.readers]
    rows = site.down_weight().detach().contiguous()
    changed = []
    try:
        for module, part in zip(modules, rows.split(widths(site), dim=1), strict=True):
            weight = module.weight
            wanted = part if isinstance(module, Conv1D) else part.T
            if wanted.data_ptr() != weight.data_ptr():  # a Conv1D alone is stored so already
                changed.append(weight)
                weight.data = wanted
        yield rows
    finally:
        for weight in changed:
            weight.data = weight.data.contiguous()
        if changed:
            # Others hold this tensor until all sites are done: there would be two copies of all.
            rows.data = rows.new_empty(0, rows.shape[1])


def widths(site: Site) -> list[int]:
    """Outputs of each map of a site."""
    return [columns.shape[1] for columns in site.columns()]


def _weight(module: Any) -> Any:
    return getattr(module, "weight", module)


def _key(site: Site) -> tuple[int, ...]:
    return tuple(id(_weight(reader)) for reader, _ in site.readers)
