"""The down projection on kept units only, by the fastest path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keepset.kernels import dispatch
from keepset.kernels.selection import Selection
from keepset.kernels.torch_ffn import DownPath, neuron_major
from keepset.sites.ffn import Site


class SparseDown:
    """The down projections of a model's sites with neuron-major weights and the fastest path."""

    def __init__(self, sites: Sequence[Site], paths: Counter[str], selection: Selection) -> None:
        """Copy the weights of `sites`; `paths` counts tokens x sites by the path taken."""
        # Depths that share parameters share the copy.
        copies: dict[int, Tensor] = {}
        for site in sites:
            if id(site.down.weight) not in copies:
                copies[id(site.down.weight)] = neuron_major(site.down_weight())
        self._rows = {site.key: copies[id(site.down.weight)] for site in sites}
        self._paths, self._selection = paths, selection
        self._path_of: dict[tuple[Any, ...], str] = {}
        self._calls: dict[tuple[Any, ...], tuple[str, DownPath, Tensor, Tensor | None]] = {}

    def rows(self, site: Site) -> Tensor:
        """The neuron-major weights of a site: (n_units, d_model)."""
        return self._rows[site.key]

    def __call__(self, site: Site, h: Tensor, kept: Tensor) -> Tensor:
        """(n, n_units) activations and kept units, as in `torch_ffn` -> (n, d_model)."""
        # One look-up per call: at batch 1 another costs as much as reading a few kept rows.
        key = (site, 1 << (len(h) - 1).bit_length(), kept.dtype)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._prepare(site, h, kept, key[1:])
        name, path, rows, bias = call
        self._paths[name] += len(h)
        return path(h, kept, rows, bias)

    def _prepare(
        self, site: Site, h: Tensor, kept: Tensor, sizes: tuple[Any, ...]
    ) -> tuple[str, DownPath, Tensor, Tensor | None]:
        down: Any = site.down
        rows, key = self._rows[site.key], (self._rows[site.key].shape, *sizes)
        if key not in self._path_of:
            alike = [other for other in self._rows.values() if other.shape == rows.shape]
            self._path_of[key] = dispatch.down_path(self._selection, h, kept, alike, down.bias)
        name = self._path_of[key]
        paths = dispatch.down_paths(self._selection, h.device, len(h), kept.dtype == torch.bool)
        return name, paths[name], rows, down.bias
