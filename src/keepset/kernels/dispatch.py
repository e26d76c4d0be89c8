"""Which path a feed-forward block or a state-space mixer takes, and how another can stand in.

A sparse down projection has several paths (`down_paths`), which give the same answer; the fastest
is found by timing them on the model's own weights (`down_path`).

transformers binds the functions of a Mamba-2 mixer as globals of the family's module; a mixer
looks them up at every call. Standing in for them there leaves the layer itself untouched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from keepset.kernels import calibrate
from keepset.kernels.scan import causal_conv, chunk_scan
from keepset.kernels.torch_ffn import DOWN_PATHS, DownPath

SCAN = "mamba2_chunk_scan"
STEP = "mamba2_selective_state_update"
CONV = "causal_conv1d_fn"
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


def scan_path(model: nn.Module) -> str:
    """What runs the model's scans, for the record: "torch" where it has none or keepset's own."""
    modules = mixer_modules(model)
    if not modules or next(model.parameters()).device.type == "cpu":
        return "torch"
    bound = inspect.getclosurevars(getattr(modules[0], SCAN)).nonlocals.get("implementation")
    package = bound.__module__.partition(".")[0] if bound is not None else "transformers"
    return "torch" if package == "transformers" else package


ACCELERATED: dict[str, dict[str, DownPath]] = {}
"""Further paths of a sparse down projection by device type, e.g. {"cuda": {"triton": ...}}: a
module of kernels enters its own here. They are timed beside the torch paths."""


def down_paths(device: torch.device) -> dict[str, DownPath]:
    """Every path of a sparse down projection on `device`, by name."""
    faster = ACCELERATED.get(device.type)
    return {**DOWN_PATHS, **faster} if faster else DOWN_PATHS


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

    paths = down_paths(h.device)
    return calibrate.fastest(key, {name: candidate(path) for name, path in paths.items()})
