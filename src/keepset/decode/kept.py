"""A feed-forward block with the weights of kept units alone, by each of its paths."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from keepset.decode.block import ffn_weights, units_of
from keepset.decode.down import SparseDown
from keepset.decode.score import UnitScore
from keepset.hold.slices import Forward, Slices, in_place, slice_up
from keepset.kernels.weights import FfnWeights
from keepset.rules.masks import top_mask
from keepset.sites.ffn import Site


class KeptBlock:
    """The block of one site; `held` says whether kept units' weights are in the model now."""

    def __init__(self, site: Site, score: UnitScore, sparse: SparseDown) -> None:
        """`sparse` projects down on kept units, and holds the site's neuron-major weights."""
        self.site, self.score, self.rows = site, score, sparse.rows(site)
        self.dense_down: Forward = site.down.forward
        self.sparse_down = partial(sparse, site)
        self.held = False
        self._in_place = ExitStack()
        self._ffn: FfnWeights | None = None

    def hold(self, units: Tensor) -> None:
        """Put the weights of `units` (k,) in the model's, until `release`."""
        if not self.held:
            self._in_place.enter_context(in_place(self.slices(units)))
            self.held = True

    def release(self) -> None:
        """Put the dense weights back."""
        self._in_place.close()
        self.held = False

    def slices(self, units: Tensor) -> Slices:
        """The weights of `units` (k,), copied together."""
        down = self.rows.index_select(0, units)
        weight = down if isinstance(self.site.down, Conv1D) else down.T
        ups = [(p.module, slice_up(p, units)) for p in self.site.up]
        return [*ups, (self.site.down, {"weight": weight})]

    # -- the paths, outside a pass of the model; x is (n, d_model)

    def plain(self, x: Tensor, units: Tensor) -> Tensor:
        """All units are computed, and the down projection reads the rows of `units`."""
        return self.sparse_down(units_of(self.site, x), units)

    def by_slices(self, x: Tensor, slices: Slices) -> Tensor:
        """Only the units of `slices` are computed."""
        with in_place(slices):
            return self.dense_down(units_of(self.site, x))

    def by_kernel(self, x: Tensor, units: Tensor) -> Tensor:
        """The same for x (1, d_model), reading the rows of `units` where they are."""
        from keepset.kernels.triton_ffn import shared_set_decode

        if self._ffn is None:
            self._ffn = ffn_weights(self.site, self.rows)
        return shared_set_decode(x, self._ffn, units)

    def choose(self, x: Tensor) -> Tensor:
        """The set that is chosen on the tokens x: (1, n_units) bool."""
        means = self.score(units_of(self.site, x)).mean(dim=0, keepdim=True)
        return top_mask(means, self.score.k)
