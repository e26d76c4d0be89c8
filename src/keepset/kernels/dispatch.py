"""Which path a feed-forward block or a state-space mixer takes, and how another can stand in.

A sparse down projection has several paths (`down_paths`), which give the same answer; the fastest
is found by timing them on the model's own weights (`down_path`). Which may run at all is chosen
in `keepset.kernels.selection`; the mixers' implementations are in `keepset.kernels.mixers`.

transformers binds the functions of a recurrent mixer as globals of the family's module; a mixer
looks them up at every call. Standing in for them there leaves the layer itself untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from keepset.kernels.clock import taking_turns
from keepset.kernels.scan import causal_conv, chunk_scan
from keepset.kernels.selection import TRITON_DOWN, Selection
from keepset.kernels.torch_ffn import DOWN_PATHS, DownPath
from keepset.kernels.weights import MAX_ROWS
from keepset.sites.state import SCAN, STEP

CONV = "causal_conv1d_fn"
UPDATE = "causal_conv1d_update"
FUSED = "mamba2_split_conv1d_scan_combined"
NUMBA_SCAN, NUMBA_DELTA = "keepset.kernels.numba_scan", "keepset.kernels.numba_delta"
"""The modules whose scans numba compiles; named, since importing them needs numba."""


def mixer_modules(model: nn.Module, functions: tuple[str, str] = (SCAN, STEP)) -> list[ModuleType]:
    """The Python modules of the model's mixers that bind `functions`, Mamba-2's if left out."""
    names = {type(module).__module__ for module in model.modules()}
    loaded = (sys.modules[name] for name in sorted(names) if name in sys.modules)
    return [module for module in loaded if all(hasattr(module, name) for name in functions)]


@contextmanager
def standing_in(
    modules: Iterable[ModuleType],
    functions: Mapping[str, Callable[..., Any]],
    free_only: bool = False,
) -> Iterator[None]:
    """Put `functions` in the place of globals of `modules`; taken back on exit.

    `free_only`: what already stands in for transformers' functions, such as a keep rule, stays.
    """
    with ExitStack() as stack:
        for module in modules:
            for name, function in functions.items():
                before = getattr(module, name)
                if not free_only or before.__module__.startswith("transformers."):
                    stack.callback(setattr, module, name, before)
                    setattr(module, name, function)
        yield


def torch_scans(model: nn.Module) -> AbstractContextManager[None]:
    """Run the mixers with `keepset.kernels.scan`, which is faster on a CPU."""
    functions: dict[str, Callable[..., Any]] = {SCAN: chunk_scan, CONV: causal_conv}
    return standing_in(mixer_modules(model), functions, free_only=True)


def _triton_down(h: Tensor, kept: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    # Imported at its first use: without Triton everything else must work.
    from keepset.kernels.triton_gemv import sparse_gemv

    return sparse_gemv(h, rows, bias, keep=kept)


def down_paths(
    selection: Selection, device: torch.device, rows: int = 1, set_per_row: bool = False
) -> dict[str, DownPath]:
    """Every path of a sparse down projection that may run, by name: torch's, and Triton's.

    `rows` are projected at a time; `set_per_row` says whether each has a keep set of its own.
    """
    # One program holds the sets of all rows; prompts have too many.
    too_many = set_per_row and rows > MAX_ROWS
    if too_many or not selection.may_use_triton("ffn", device):
        return DOWN_PATHS
    return {**DOWN_PATHS, TRITON_DOWN: _triton_down}


def setting(tensor: Tensor) -> tuple[str, str, str]:
    """What a time depends on besides sizes: device, dtype, CPU threads."""
    device = str(tensor.device)
    if tensor.device.type != "cpu":
        device = torch.cuda.get_device_name(tensor.device).replace(" ", "-")
    return device, str(tensor.dtype).removeprefix("torch."), f"threads={torch.get_num_threads()}"


def down_path(
    selection: Selection, h: Tensor, kept: Tensor, weights: Sequence[Tensor], bias: Tensor | None
) -> str:
    """The fastest path of a sparse down projection, timed once per size.

    Args:
        selection: Which kernels may run, and what was timed before.
        h: (n, n_units) activations.
        kept: (n, n_units) bool, or (k,) int64, the units that all rows keep.
        weights: Neuron-major weights (n_units, d_model) of one shape, one per layer: rounds take
            them in turn, so that each reads its weights from memory, as decoding does.
        bias: (d_model,) or None.

    Returns:
        A key of `down_paths`.
    """
    # Powers of two of rows, and of the share kept to a percent, are near enough to share times.
    rows = 1 << (h.shape[0] - 1).bit_length()
    n_kept = kept.sum() / h.shape[0] if kept.dtype == torch.bool else len(kept)
    density = round(float(n_kept) / h.shape[1], 2)
    shape = "x".join(map(str, weights[0].shape))
    key = ("down", shape, f"rows={rows}", f"kept={density:g}", *setting(h))

    def call(path: DownPath) -> Callable[[Tensor], Tensor]:
        return lambda rows: path(h, kept, rows, bias)

    paths = down_paths(selection, h.device, len(h), kept.dtype == torch.bool)
    runs = {name: taking_turns(weights, call(path)) for name, path in paths.items()}
    return selection.fastest_ffn(key, runs)
