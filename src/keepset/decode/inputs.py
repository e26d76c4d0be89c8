"""The maps that read one tensor, on the units that each token chooses: q, k and v, a down map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keepset.decode.choice import UnitChoice
from keepset.decode.layout import widths
from keepset.decode.position import Position
from keepset.decode.token import TokenMap, TokenPaths
from keepset.errors import ModelError
from keepset.hold.slices import Forward, standing_forward
from keepset.kernels.selection import NUMBA, TRITON_DOWN
from keepset.kernels.weights import MAX_ROWS
from keepset.sites.ffn import Site


class SparseReaders(TokenMap):
    """Stands in for the forwards of the maps of a site.

    The first that is called with a tensor computes the outputs of all; the others hand out theirs.

    Attributes:
        site: The site.
    """

    has_triton = True

    def __init__(
        self, site: Site, choice: UnitChoice, rows: Tensor, position: Position, peers: TokenPaths
    ) -> None:
        """Prepare a site.

        Args:
            site: The site.
            choice: What its tokens keep.
            rows: (n_units, outputs) weights of all maps (`keepset.decode.layout`).
            position: Will follow the passes of the model.
            peers: The other sites of the model.
        """
        super().__init__(rows, site.n_units, peers)
        self.site = site
        self._choice, self._position = choice, position
        self._modules: list[Any] = [reader for reader, _ in site.readers]
        self._forwards: list[Forward] = [module.forward for module in self._modules]
        self._widths = widths(site)
        self._x: Tensor | None = None
        self._parts: list[Tensor | None] = []
        self._by_numba: Forward | None = None
        self._on_gpu: tuple[Tensor | None, Tensor | None, Tensor] | None = None

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in; everything is put back on exit."""
        with ExitStack() as stack:
            for place, module in enumerate(self._modules):
                stack.enter_context(standing_forward(module, partial(self._part, place)))
            try:
                yield
            finally:
                self._by_numba = self._on_gpu = None  # they hold the weights

    def _part(self, place: int, x: Tensor) -> Tensor:
        """The output of the map at `place` for x (..., n_units)."""
        part = self._parts[place] if self._is_known(x) else None
        if part is None:
            self._x, self._parts = x, list(self._project(x))
            part = self._parts[place]
            assert part is not None
        self._parts[place] = None
        if not any(part is not None for part in self._parts):
            self._x = None
        return part

    def _is_known(self, x: Tensor) -> bool:
        # The tensor is kept meanwhile, so that no other has its place in memory.
        seen = self._x
        return seen is not None and x.data_ptr() == seen.data_ptr() and x.shape == seen.shape

    def _project(self, x: Tensor) -> list[Tensor]:
        if not self.takes(x):
            x = self._choice.hold(x, self._position)
            return [forward(x) for forward in self._forwards]
        if len(self._forwards) == 1:
            return [self.tokens(x)]
        parts = self.tokens(x).split(self._widths, dim=-1)
        return list(parts) if x.numel() == self.ins else [part.contiguous() for part in parts]

    def start(self, module: nn.Module) -> int:
        """Where the outputs of one of the maps begin among those of all."""
        return sum(self._widths[: self._modules.index(module)])

    def takes(self, x: Tensor) -> bool:
        """Whether x (..., n_units) is a few tokens that choose: no prompt, no first token."""
        position = self._position
        rows = position.batch * position.tokens
        return not position.opens and rows <= MAX_ROWS and x.numel() == rows * self.ins

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens x (..., n_units) that it takes -> (..., outputs of all maps)."""
        return self.peers.run(self, x)

    def by_torch(self, x: Tensor) -> Tensor:
        """Tokens x (..., n_units) -> (..., outputs of all maps), masked."""
        held = self._choice.held(x, self._choice.mask(x))
        return torch.cat([forward(held) for forward in self._forwards], dim=-1)

    def by_numba(self, x: Tensor) -> Tensor:
        """The same by one kernel that chooses and projects.

        Raises:
            ModelError: a score is NaN; the message names the site.
        """
        if self._by_numba is None:
            from keepset.kernels.numba_ffn import TokenDown  # compiled at its first use

            choice = self._choice
            self._by_numba = TokenDown(self.rows, choice.least, choice.norms, self._bias())
        self.peers.paths[NUMBA] += x.numel() // self.ins
        try:
            return self._by_numba(self._offsets(x))
        except ModelError:
            raise self._choice.not_finite() from None

    def by_triton(self, x: Tensor) -> Tensor:
        """The same by one kernel on a GPU, which nothing waits for: a NaN shows in the logits."""
        from keepset.kernels.triton_gemv import new_arrivals, sparse_gemv

        choice = self._choice
        if self._on_gpu is None:
            kept = choice.fixed
            units = None if kept is None else kept.nonzero()[:, 0].to(self.rows.device)
            self._on_gpu = self._bias(), units, new_arrivals(self.rows)
        bias, units, arrivals = self._on_gpu
        self.peers.paths[TRITON_DOWN] += x.numel() // self.ins
        chosen: dict[str, Any] = {"keep": units}
        if units is None:
            by = "threshold" if isinstance(choice.least, float) else "k"
            chosen = {by: choice.least, "norms": choice.norms}
        return sparse_gemv(self._offsets(x), self.rows, bias, arrivals=arrivals, **chosen)

    def _offsets(self, x: Tensor) -> Tensor:
        """What the kernels choose from and project: x, or what it is off its centre."""
        centre = self._choice.centre
        return x if centre is None else x - centre

    def _bias(self) -> Tensor | None:
        """The biases of all maps, side by side, and W c of the centre; None where there is none."""
        biases, centre = [module.bias for module in self._modules], self._choice.centre
        if centre is None and all(bias is None for bias in biases):
            return None
        parts = zip(biases, self._widths, strict=True)
        bias = torch.cat([self.rows.new_zeros(n) if b is None else b.detach() for b, n in parts])
        if centre is None:
            return bias
        # Added up once for all tokens: the order of a sum costs no digits in float64.
        return (bias + centre * self.rows.sum(dim=0, dtype=torch.float64)).float()
