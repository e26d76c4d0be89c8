"""Which implementation runs the scan, the convolution and the step of a model's Mamba-2 mixers.

transformers decides at its own import: functions of mamba-ssm and causal-conv1d where those can be
imported, for tensors on a CPU too (where they cannot run), else its own in torch. `mixer_kernels`
has the choice of `keepset.kernels.choice` run instead, and puts everything back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError
from keepset.kernels import calibrate, choice
from keepset.kernels.dispatch import (
    CONV,
    FUSED,
    SCAN,
    STEP,
    UPDATE,
    mixer_modules,
    setting,
    standing_in,
)
from keepset.kernels.scan import causal_conv, chunk_scan

TORCH, TRITON, MAMBA_SSM = "torch", "triton", "mamba-ssm"
_HOW = (
    "pip install --no-deps --no-build-isolation mamba-ssm causal-conv1d builds them for torch as it"
    " is installed (versions: requirements-kernels.txt)"
)

Step = Callable[..., Tensor]
"""What updates a state in place and reads it out, with transformers' arguments."""

_running: dict[str, dict[str, str]] = {}


def bound(module: ModuleType, name: str) -> str:
    """Whose function transformers has bound as `name`: "torch" for its own, or a package's."""
    function = getattr(module, name)
    if not inspect.isfunction(function):  # what stands in here is keepset's
        return TORCH
    found = inspect.getclosurevars(function).nonlocals.get("implementation")
    package = "transformers" if found is None else found.__module__.partition(".")[0]
    return TORCH if package == "transformers" else package.replace("_", "-")


def scan_path(model: nn.Module) -> str:
    """What runs the model's scans, by the choice that holds: "torch", or the name of a package.

    Raises:
        ConfigError: mamba-ssm is chosen by name and cannot run.
    """
    return _bound_or_torch(model, "scan", SCAN)


def _bound_or_torch(model: nn.Module, key: str, name: str) -> str:
    wanted = getattr(choice.chosen(), key)
    modules = mixer_modules(model)
    if not modules:
        return TORCH
    device = next(model.parameters()).device
    found = bound(modules[0], name)
    if wanted == MAMBA_SSM and device.type != "cuda":
        raise ConfigError(
            f"kernels.{key}: mamba-ssm runs on CUDA GPUs, not on {device.type}; choose torch or"
            " auto there"
        )
    if wanted == MAMBA_SSM and found == TORCH:
        raise ConfigError(
            f"kernels.{key}: mamba-ssm is not installed, or transformers cannot import it. {_HOW};"
            f" or choose kernels.{key}: torch or auto"
        )
    return TORCH if wanted == TORCH or device.type == "cpu" else found


@contextmanager
def mixer_kernels(model: nn.Module) -> Iterator[dict[str, str]]:
    """Run the mixers of `model` with the implementations that are chosen.

    What already stands in for transformers' functions, such as a keep rule, stays. In torch, scan
    and convolution are those of `keepset.kernels.scan`. Within another `mixer_kernels` of the same
    family, that one holds.

    Returns:
        scan and state -> what runs them; `state` is there once a step has run. Empty for a model
        without mixers.

    Raises:
        ConfigError: what is chosen by name cannot run; names the key and what to install.
    """
    modules = mixer_modules(model)
    if not modules or modules[0].__name__ in _running:
        yield _running[modules[0].__name__] if modules else {}
        return
    device = next(model.parameters()).device
    choice.require(device)
    ran = {"scan": scan_path(model)}
    theirs = _bound_or_torch(model, "state", STEP)
    with ExitStack() as stack:
        for module in modules:
            functions = dict(_torch_functions(module)) if ran["scan"] == TORCH else {}
            functions[STEP] = _Stepper(getattr(module, STEP), theirs, device, ran)
            free = {
                name: function
                for name, function in functions.items()
                if getattr(module, name).__module__.startswith("transformers.")
            }
            stack.enter_context(standing_in([module], free))
            _running[module.__name__] = ran
            stack.callback(_running.pop, module.__name__)
        yield ran


def _torch_functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield SCAN, chunk_scan
    yield CONV, causal_conv
    for name in (UPDATE, FUSED):  # transformers' own, where a package's is bound
        if hasattr(module, name) and bound(module, name) != TORCH:
            yield name, getattr(module, name).__wrapped__


class _Stepper:
    """Stands in for the step of the mixers of one module."""

    def __init__(
        self, original: Callable[..., Any], theirs: str, device: torch.device, ran: dict[str, str]
    ) -> None:
        """`theirs`: whose step transformers has bound, if it may run; `ran` is told what did."""
        self._ran = ran
        self._wanted = choice.chosen().state
        self._known: dict[tuple[Any, ...], Step] = {}
        self._steps: dict[str, Step] = {TORCH: getattr(original, "__wrapped__", original)}
        if theirs != TORCH and self._wanted in ("auto", MAMBA_SSM):
            self._steps[theirs] = original
        ours = self._wanted == TRITON or (self._wanted == "auto" and device.type == "cuda")
        if ours and choice.why_not_triton(device) is None:
            self._steps[TRITON] = triton_step

    def __call__(self, state: Tensor, x: Tensor, dt: Tensor, *rest: Any, **named: Any) -> Tensor:
        key = (state.shape, state.dtype, x.dtype)
        step = self._known.get(key)
        if step is None:
            name = self._choose((state, x, dt, *rest), named)
            step = self._known[key] = self._steps[name]
            self._ran["state"] = name
        return step(state, x, dt, *rest, **named)

    def _choose(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
        """The step to take: the one that is chosen by name, if it works, else the fastest."""
        if len(self._steps) == 1:
            return TORCH
        state, *rest = arguments

        def once(step: Step, _: int) -> Tensor:
            return step(state.clone(), *rest, **named)

        tried = {name: partial(once, step) for name, step in self._steps.items()}
        names = list(choice.working(tried, self._steps.keys() - {TORCH}))
        if self._wanted in names or len(names) == 1:
            return names[-1]
        # On a scratch state each: a step changes its state, and making a copy would count.
        scratch = {name: state.clone() for name in names}

        def timed(name: str, _: int) -> None:
            self._steps[name](scratch[name], *rest, **named)

        key = ("state step", "x".join(map(str, state.shape)), *setting(rest[0]))
        return calibrate.fastest(key, {name: partial(timed, name) for name in names})


def triton_step(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """`keepset.kernels.triton_state.state_step` with transformers' arguments."""
    from keepset.kernels.triton_state import state_step

    return state_step(
        state, hidden_states, dt, A, B, C, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z
    )
