"""A feed-forward block whose two sites are in a recipe, as one step of a token.

Its module is then not run: what is left of it are two calls of a kernel with the activation, by
transformers' own function, between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from keepset.decode.block import agrees, separable
from keepset.decode.inputs import SparseReaders
from keepset.decode.whole import uncounted
from keepset.hold.slices import standing_forward
from keepset.sites.ffn import Site


class JoinedBlock:
    """Stands in for the module of a block, for the tokens that its sites take."""

    def __init__(self, module: nn.Module, first: SparseReaders, down: SparseReaders) -> None:
        """Join the sites of what makes h, and of h, that are all linear maps of `module`."""
        self._module, self._first, self._down = module, first, down
        self._plain = module.forward
        site = down.site
        self._act, self._n = ACT2FN[site.activation], site.n_units
        self._starts = [
            first.start(projection.module) + offset
            for projection in site.up
            for offset in projection.offsets
        ]
        self._is_sound: bool | None = None

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in; everything is put back on exit."""
        with standing_forward(self._module, self._forward):
            yield

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_sound is False or len(args) != 1 or kwargs or not self._first.takes(args[0]):
            return self._plain(*args, **kwargs)
        if self._is_sound:
            return self._tokens(args[0])
        # The module may do more than its layout says.
        out = self._plain(args[0])
        with uncounted(self._first.peers.paths):
            self._is_sound = isinstance(out, Tensor) and agrees(self._tokens(args[0]), out)
        return out

    def _tokens(self, x: Tensor) -> Tensor:
        outs = self._first.tokens(x)
        parts = [outs.narrow(-1, start, self._n) for start in self._starts]
        h = self._act(parts[0])
        return self._down.tokens(h * parts[1] if self._down.site.gated else h)


def joined_blocks(model: nn.Module, readers: Mapping[str, SparseReaders]) -> list[JoinedBlock]:
    """The blocks of `model` whose sites are both among `readers`, site key -> what stands in."""
    modules = dict(model.named_modules())
    reader_of = {module: one for one in readers.values() for module, _ in one.site.readers}
    blocks = []
    for down in readers.values():
        site = down.site
        first = reader_of.get(site.up[0].module) if separable(site) else None
        if first is None:
            continue
        block = modules[_parent(site, first.site)]
        maps = {module for module in block.modules() if getattr(module, "weight", None) is not None}
        read = {module for part in (first, down) for module, _ in part.site.readers}
        if maps == read and {projection.module for projection in site.up} == read - {site.down}:
            blocks.append(JoinedBlock(block, first, down))
    return blocks


def _parent(*sites: Site) -> str:
    """The path of the innermost module that holds all of `sites`."""
    parts = []
    for names in zip(*(site.name.split(".") for site in sites), strict=False):
        if len(set(names)) > 1:
            break
        parts.append(names[0])
    return ".".join(parts)
