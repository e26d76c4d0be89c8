"""Which path a state-space mixer takes, and how another can stand in for it.

transformers binds the functions of a Mamba-2 mixer as globals of the family's module; a mixer
looks them up at every call. Standing in for them there leaves the layer itself untouched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from keepset.kernels.scan import causal_conv, chunk_scan

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
