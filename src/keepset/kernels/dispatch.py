"""Which path a feed-forward block or a state-space mixer takes, and how another can stand in.

A sparse down projection has several paths (`down_paths`), which give the same answer; the fastest
is found by timing them on the model's own weights (`down_path`). Which may run at all is chosen
in `keepset.kernels.choice`; the mixers' implementations are in `keepset.kernels.mixers`.

transformers binds the functions of a Mamba-2 mixer as globals of the family's module; a mixer
looks them up at every call. Standing in for them there leaves the layer itself untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from keepset.kernels import calibrate, choice
from keepset.kernels.choice import TRITON_DOWN, TRITON_FFN
from keepset.kernels.scan import causal_conv, chunk_scan
from keepset.kernels.torch_ffn import DOWN_PATHS, DownPath
from keepset.kernels.weights import MAX_ROWS
from keepset.sites.state import SCAN, STEP

CONV = "causal_conv1d_fn"
UPDATE = "causal_conv1d_update"
FUSED = "mamba2_split_conv1d_scan_combined"


def mixer_modules(model: nn.Module) -> list[ModuleType]:
    """The Python modules of the model's Mamba-2 mixers; empty where it has none."""
    names = {type(module).__module__ for module in model.modules()}
    found = (sys.modules[name] for name in sorted(names) if name in sys.modules)
    return [module for module in found if hasattr(module, SCAN) and hasattr(module, STEP)]


@contextmanager
def standing_in(
    modules: Iterable[ModuleType], functions: Mapping[str, Callable[..., Any]]
) -> Iterator[None]:
    """Put `functions` in the place of globals of `modules`; taken back on exit."""
    with ExitStack() as stack:
        for module in modules:
            for name, function in functions.items():
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, function)
        yield


@contextmanager
def torch_scans(model: nn.Module) -> Iterator[None]:
    """Run the mixers with `keepset.kernels.scan`, which is faster on a CPU.

    What already stands in for transformers' functions, such as a keep rule, stays.
    """
    with ExitStack() as stack:
        for module in mixer_modules(model):
            functions = {
                name: function
                for name, function in ((SCAN, chunk_scan), (CONV, causal_conv))
                if getattr(module, name).__module__.startswith("transformers.")
            }
            stack.enter_context(standing_in([module], functions))
        yield


def _triton_down(h: Tensor, kept: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    # Imported at its first use: without Triton everything else must work.
    from keepset.kernels.triton_ffn import sparse_down

    return sparse_down(h, kept, rows, bias)


ACCELERATED: dict[str, dict[str, DownPath]] = {"cuda": {TRITON_DOWN: _triton_down}}
"""Further paths of a sparse down projection by device type: a module of kernels enters its own
here. They are timed beside the torch paths. Those of "cuda" are Triton's: they run where
`choice.ffn_kernels` says so."""


def down_paths(device: torch.device, rows: int = 1, own: bool = False) -> dict[str, DownPath]:
    """Every path of a sparse down projection that may run, by name.

    Args:
        device: Where.
        rows: Rows at a time.
        own: Whether each row has a keep set of its own.
    """
    if choice.ffn_kernels(device):
        # One program holds the sets of all rows; prompts have too many.
        return DOWN_PATHS if own and rows > MAX_ROWS else {**DOWN_PATHS, **ACCELERATED["cuda"]}
    if device.type == "cuda" or device.type not in ACCELERATED:
        return DOWN_PATHS
    return {**DOWN_PATHS, **ACCELERATED[device.type]}


def fastest(key: Hashable, candidates: Mapping[str, calibrate.Candidate]) -> str:
    """The fastest candidate, by `calibrate.fastest`; Triton's only where they work.

    Every candidate must return its output.
    """
    foreign = {TRITON_FFN, TRITON_DOWN}
    if (name := calibrate.forced(candidates)) is not None and name not in foreign:
        return name
    left = choice.working(candidates, foreign)
    return next(iter(left)) if len(left) == 1 else calibrate.fastest(key, left)


def setting(tensor: Tensor) -> tuple[str, str, str]:
    """What a measured time depends on beside sizes: device, dtype, CPU threads."""
    device = str(tensor.device) if tensor.device.type == "cpu" else _gpu(tensor.device)
    return device, str(tensor.dtype).removeprefix("torch."), f"threads={torch.get_num_threads()}"


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).replace(" ", "-")


def down_path(h: Tensor, kept: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> str:
    """The fastest path of a sparse down projection, measured once per size and machine.

    Args:
        h: (n, n_units) activations.
        kept: (n, n_units) bool, or (k,) int64, the units that all rows keep.
        weights: Neuron-major weights (n_units, d_model) of one shape, one per layer: rounds take
            them in turn, so that each finds its weights outside the cache, as decoding does.
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

    def candidate(path: DownPath) -> calibrate.Candidate:
        return lambda at: path(h, kept, weights[at % len(weights)], bias)

    paths = down_paths(h.device, len(h), kept.dtype == torch.bool)
    return fastest(key, {name: candidate(path) for name, path in paths.items()})
