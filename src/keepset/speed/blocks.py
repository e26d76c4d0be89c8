"""One down projection and one FFN block of a given shape, on random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepset.decode.block import PLAIN
from keepset.kernels import dispatch, naive
from keepset.kernels.selection import TRITON_DOWN, TRITON_FFN, Selection
from keepset.kernels.torch_ffn import DownPath
from keepset.kernels.weights import MAX_ROWS, FfnWeights
from keepset.rules.masks import top_mask, top_units
from keepset.rules.rule import n_kept
from keepset.settings import Shape
from keepset.speed.timing import Machine, Run, in_turn, must_agree, summary

Row = dict[str, Any]
_MOST_COPIES = 8
_DYNAMIC, _KNOWN = f"ffn dynamic, {TRITON_FFN}", f"ffn known, {TRITON_FFN}"


@dataclass(frozen=True)
class Block:
    """The weights of one FFN block: `up` (n_units, d_model) each, `down` (d_model, n_units)."""

    up: Sequence[Tensor]
    down: Tensor
    rows: Tensor

    @property
    def weights(self) -> FfnWeights:
        """The same weights as kernels take them."""
        if len(self.up) == 2:
            return FfnWeights(self.up[1], self.rows, self.up[0], "silu")
        return FfnWeights(self.up[0], self.rows)

    def units(self, x: Tensor) -> Tensor:
        """h of x (n, d_model): (n, n_units)."""
        outs = [F.linear(x, weight) for weight in self.up]
        return F.silu(outs[0]) * outs[1] if len(outs) == 2 else F.relu(outs[0])

    def dense(self, x: Tensor) -> Tensor:
        """The whole block on x (n, d_model)."""
        return F.linear(self.units(x), self.down)

    def compact(self, units: Tensor) -> Block:
        """The block of `units` (k,) alone."""
        rows = self.rows.index_select(0, units)
        return Block([weight.index_select(0, units) for weight in self.up], rows.T, rows)


def random_blocks(shape: Shape, dtype: torch.dtype, machine: Machine) -> list[Block]:
    """As many blocks as are four times the cache, two to eight, from a fixed seed."""
    generator = torch.Generator(machine.device).manual_seed(0)
    n_up = 2 if shape.gated else 1
    size = (n_up + 1) * shape.d_model * shape.n_units * dtype.itemsize
    copies = min(_MOST_COPIES, max(2, -(-4 * machine.cache // size)))

    def weight(rows: int, columns: int) -> Tensor:
        values = torch.empty(rows, columns, device=machine.device)
        return values.uniform_(-1, 1, generator=generator).to(dtype) * (3 / columns) ** 0.5

    blocks = []
    for _ in range(copies):
        down = weight(shape.d_model, shape.n_units)
        up = [weight(shape.n_units, shape.d_model) for _ in range(n_up)]
        blocks.append(Block(up, down, down.T.contiguous()))
    return blocks


def time_shape(
    name: str,
    shape: Shape,
    batches: Mapping[int, Sequence[float]],
    dtype: torch.dtype,
    machine: Machine,
    seconds: float,
    selection: Selection,
) -> Iterator[Row]:
    """Rows of the `kernels` table for one shape.

    `down` is the down projection alone, by every path, the sets given. `ffn dynamic` is a whole
    block whose set is chosen exactly from h at every token; `ffn known` is a whole block whose set
    is known beforehand, as in a window or statically, cut to the kept rows. Where Triton's kernels
    run, both are timed a second time as one path of them, `triton-ffn`, which reads the kept rows
    where they are. `batches`: tokens at a time -> sparsities.

    Raises:
        KeepsetError: a path gives another result than the reference.
    """
    blocks = random_blocks(shape, dtype, machine)
    for batch, sparsities in batches.items():
        for sparsity in sparsities:
            with torch.inference_mode():
                case = _Case(blocks, batch, n_kept(shape.n_units, sparsity), selection)
                timed = list(case.time(machine, seconds))
            for level, kernel, path, window, bytes_, took, dense in timed:
                yield {
                    "model": name,
                    "level": level,
                    "kernel": kernel,
                    "path": path,
                    "shape": f"{shape.d_model}x{shape.n_units}",
                    "method": "static" if window == "corpus" else "dynamic",
                    "score": "magnitude",
                    "sparsity": sparsity,
                    "window": window,
                    "choice": "none" if window == "corpus" else "oracle",
                    "batch": batch,
                    **summary(took, dense),
                    "bytes": bytes_,
                    "roofline_ms": 1e3 * bytes_ / machine.bandwidth,
                }


class _Case:
    """One batch size and share kept."""

    def __init__(
        self, blocks: Sequence[Block], batch: int, kept: int, selection: Selection
    ) -> None:
        self.blocks, self.kept, self.selection = blocks, kept, selection
        first = blocks[0].rows
        generator = torch.Generator(first.device).manual_seed(kept)
        self.x = torch.randn(batch, first.shape[1], generator=generator, device=first.device)
        self.x = self.x.to(first.dtype)
        self.h = [block.units(self.x) for block in blocks]
        self.sets = [self._choose(h) for h in self.h]
        self.shared = [top_units(h.float().abs().sum(dim=0), kept) for h in self.h]
        self.compact = [
            block.compact(units) for block, units in zip(blocks, self.shared, strict=True)
        ]

    def _choose(self, h: Tensor) -> Tensor:
        score = h.abs().float()
        return top_units(score[0], self.kept) if len(h) == 1 else top_mask(score, self.kept)

    def time(self, machine: Machine, seconds: float) -> Iterator[tuple[Any, ...]]:
        """Level, kernel, path, window, bytes that must be read, seconds, seconds of dense."""
        paths = self._paths()
        by_kernels = self._by_kernels()
        self._check(paths, by_kernels)
        runs: dict[str, Run] = {
            "dense": lambda copy: F.linear(self.h[copy], self.blocks[copy].down)
        }
        runs |= {name: partial(self._down, name) for name in paths}
        took = in_turn(runs, len(self.blocks), machine, seconds)
        row = self.blocks[0].rows[0].nbytes
        touched = int(_mask(self.h[0], self.sets[0]).any(dim=0).sum()) * row
        for name in paths:
            yield "kernel", "down", name, "1", touched, took[name], took["dense"]
        rows = [block.rows for block in self.blocks]
        best = dispatch.down_path(self.selection, self.h[0], self.sets[0], rows, None)
        runs = {"dense": lambda copy: self.blocks[copy].dense(self.x)}
        runs |= {"dynamic": partial(self._dynamic, best), "known": self._known, **by_kernels}
        took = in_turn(runs, len(self.blocks), machine, seconds)
        n_up, n_units = len(self.blocks[0].up), len(self.blocks[0].rows)
        up = n_up * n_units * row
        yield "ffn", "ffn dynamic", best, "1", up + touched, took["dynamic"], took["dense"]
        cut = (n_up + 1) * self.kept * row
        yield "ffn", "ffn known", "held", "corpus", cut, took["known"], took["dense"]
        for name in by_kernels:
            ends = ("1", up + touched) if name == _DYNAMIC else ("corpus", cut)
            yield "ffn", name.partition(",")[0], TRITON_FFN, *ends, took[name], took["dense"]

    def _paths(self) -> list[str]:
        """The paths of the down projection that may run and work."""
        set_per_row = self.sets[0].dtype == torch.bool
        paths = dispatch.down_paths(self.selection, self.x.device, len(self.x), set_per_row)
        runs = {name: partial(self._down, name) for name in paths}
        return list(self.selection.working(runs, {TRITON_DOWN}))

    def _by_kernels(self) -> dict[str, Run]:
        """The whole block by Triton's kernels, where they run: dynamic, and the set known."""
        if not self.selection.may_use_triton("ffn", self.x.device):
            return {}
        from keepset.kernels.triton_ffn import sparse_decode
        from keepset.kernels.triton_prefill import shared_set_ffn

        weights = [block.weights for block in self.blocks]
        runs: dict[str, Run] = {
            _KNOWN: lambda copy: shared_set_ffn(self.x, weights[copy], self.shared[copy])
        }
        if len(self.x) <= MAX_ROWS:
            runs[_DYNAMIC] = lambda copy: sparse_decode(self.x, weights[copy], k=self.kept)
        torchs: dict[str, Run] = {_KNOWN: self._known, _DYNAMIC: partial(self._dynamic, "masked")}
        return {
            name: run
            for name, run in runs.items()
            if name in self.selection.working({PLAIN: torchs[name], name: run}, {name})
        }

    def _down(self, path: str, copy: int) -> Tensor:
        return self._by(path)(self.h[copy], self.sets[copy], self.blocks[copy].rows, None)

    def _dynamic(self, path: str, copy: int) -> Tensor:
        block = self.blocks[copy]
        h = block.units(self.x)
        return self._by(path)(h, self._choose(h), block.rows, None)

    def _by(self, path: str) -> DownPath:
        return dispatch.down_paths(self.selection, self.x.device)[path]

    def _known(self, copy: int) -> Tensor:
        return self.compact[copy].dense(self.x)

    def _check(self, paths: Sequence[str], by_kernels: Mapping[str, Run]) -> None:
        rows, h = self.blocks[0].rows.double(), self.h[0].double()
        expected = h.where(_mask(h, self.sets[0]), 0.0) @ rows
        for path in paths:
            must_agree(self._down(path, 0), expected, f"down, path {path}")
            must_agree(self._dynamic(path, 0), expected, f"ffn dynamic, path {path}")
        must_agree(self._known(0), h.where(_mask(h, self.shared[0]), 0.0) @ rows, "ffn known")
        for name, run in by_kernels.items():
            must_agree(run(0), self._rounded_once(name), name)

    def _rounded_once(self, name: str) -> Tensor:
        """The block by the definition, float64, with h as kernels have it: rounded once."""
        ffn = self.blocks[0].weights
        h = naive.hidden(self.x, ffn).to(self.x.dtype).float()
        if name == _DYNAMIC:
            return naive.down(h.where(naive.keep_best(h.abs(), self.kept), 0.0), ffn).double()
        return naive.down(h.where(_mask(h, self.shared[0]), 0.0), ffn).double()


def _mask(h: Tensor, kept: Tensor) -> Tensor:
    """Which units of h (n, n_units) each row keeps: (n, n_units) bool."""
    if kept.dtype == torch.bool:
        return kept
    mask = torch.zeros_like(h, dtype=torch.bool)
    mask[:, kept] = True
    return mask
