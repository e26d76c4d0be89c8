"""Which implementation runs the scan, the convolution and the step of a model's recurrent mixers.

They are Mamba-2's, or those of the gated delta rule. transformers decides at its own import:
functions of mamba-ssm, fla and causal-conv1d where those can be imported, for tensors on a CPU too
(where they cannot run), else its own in torch. `mixer_kernels` runs what a `Selection` chooses
instead, and puts everything back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError
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
from keepset.kernels.selection import NUMBA, Selection
from keepset.sites.memories.delta import GATED

TORCH, TRITON, MAMBA_SSM = "torch", "triton", "mamba-ssm"
_HOW = (
    "pip install --no-deps --no-build-isolation mamba-ssm causal-conv1d builds them for torch as it"
    " is installed (versions: requirements-kernels.txt)"
)

Step = Callable[..., Tensor]
"""What updates a state in place and reads it out, with transformers' arguments."""


def provider(module: ModuleType, name: str) -> str:
    """Whose function transformers has bound as `name`: "torch" for its own, or a package's."""
    function = getattr(module, name)
    bound = inspect.getclosurevars(function).nonlocals.get("implementation", function)
    package = bound.__module__.partition(".")[0]
    return TORCH if package in ("transformers", "keepset") else package.replace("_", "-")


def _bound(model: nn.Module) -> tuple[list[ModuleType], tuple[str, str]]:
    """The modules of the model's mixers, and the functions of a passage and of a step in them."""
    for names in ((SCAN, STEP), GATED):
        if modules := mixer_modules(model, names):
            return modules, names
    return [], (SCAN, STEP)


def provider_for(model: nn.Module, key: Literal["scan", "state"], selection: Selection) -> str:
    """Whose scans, or steps, may run in the model: "torch", or the name of a package.

    Raises:
        ConfigError: mamba-ssm or numba is chosen by name and cannot run.
    """
    wanted = getattr(selection.wanted, key)
    modules, names = _bound(model)
    if not modules:
        return TORCH
    device = next(model.parameters()).device
    mamba_ssm = wanted == MAMBA_SSM and SCAN in names
    if mamba_ssm and device.type != "cuda":
        raise ConfigError(
            f"kernels.{key}: mamba-ssm runs on CUDA GPUs, not on {device.type}; choose torch or"
            " auto there"
        )
    if key == "scan" and selection.may_use_numba(key, device):
        return NUMBA
    if wanted == TORCH or device.type == "cpu":
        return TORCH
    package = provider(modules[0], names[0] if key == "scan" else names[1])
    if mamba_ssm and package == TORCH:
        raise ConfigError(
            f"kernels.{key}: mamba-ssm is not installed, or transformers cannot import it. {_HOW};"
            f" or choose kernels.{key}: torch or auto"
        )
    return package


@contextmanager
def mixer_kernels(model: nn.Module, selection: Selection) -> Iterator[dict[str, str]]:
    """Run the mixers of `model` with the implementations that are chosen.

    What already stands in for transformers' functions, such as a keep rule, stays. On a CPU, scan
    and convolution are numba's, or Mamba-2's are those of `keepset.kernels.scan`. transformers
    binds these functions once for all models of a family: within another `mixer_kernels` of the
    same family, that one holds.

    Returns:
        scan and state -> what runs them; `state` is there once a step has run. Empty for a model
        without mixers.

    Raises:
        ConfigError: what is chosen by name cannot run (names the key and what to install), or
            another choice holds for this family.
    """
    modules, names = _bound(model)
    outer = getattr(modules[0], names[1]) if modules else None
    if outer is None or isinstance(outer, _Stepper):
        yield {} if outer is None else outer.shared_with(selection)
        return
    selection.require(next(model.parameters()).device)
    ran = {"scan": provider_for(model, "scan", selection)}
    theirs = provider_for(model, "state", selection)
    stepper = _Stepper if SCAN in names else _DeltaStepper
    with ExitStack() as stack:
        for module in modules:
            functions = dict(_functions(module, names[0], ran["scan"]))
            functions[names[1]] = stepper(getattr(module, names[1]), theirs, selection, ran)
            stack.enter_context(standing_in([module], functions, free_only=True))
        yield ran


def _functions(
    module: ModuleType, passage: str, scans: str
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What runs in place of transformers' functions, where `scans` are not those it has bound."""
    if scans not in (NUMBA, TORCH):
        return
    own = {  # transformers', where a package's is bound
        name: getattr(module, name).__wrapped__
        for name in (passage, CONV, UPDATE, FUSED)
        if hasattr(module, name) and provider(module, name) != TORCH
    }
    yield from own.items()
    if scans == NUMBA:
        from keepset.kernels import numba_delta, numba_scan  # imported at their first use

        yield CONV, numba_scan.convolution
        if passage == SCAN:
            yield SCAN, numba_scan.scan
        else:
            yield passage, numba_delta.delta_rule(own.get(passage) or getattr(module, passage))
    elif passage == SCAN:
        yield SCAN, chunk_scan
        yield CONV, causal_conv


class _Stepper:
    """Stands in for the step of the mixers of one module."""

    def __init__(
        self, original: Callable[..., Any], theirs: str, selection: Selection, ran: dict[str, str]
    ) -> None:
        """`theirs`: whose step transformers has bound, if it may run; `ran` is told what did."""
        self._selection, self._ran = selection, ran
        self._original, self._theirs = original, theirs
        self._step_of: dict[tuple[Any, ...], Step] = {}

    def shared_with(self, selection: Selection) -> dict[str, str]:
        """What runs, for another context of the same family; auto takes it as it is.

        Raises:
            ConfigError: the other one names another implementation.
        """
        for key in ("scan", "state"):
            running, chosen = (getattr(s.wanted, key) for s in (self._selection, selection))
            if chosen not in (running, "auto"):
                raise ConfigError(
                    f"kernels.{key}: {chosen} was chosen while a model of the same family runs with"
                    f" {running}; let that one end first"
                )
        return self._ran

    def __call__(self, state: Tensor, x: Tensor, dt: Tensor, *rest: Any, **options: Any) -> Tensor:
        key = (state.shape, state.dtype, x.dtype)
        if key not in self._step_of:
            steps = self._steps(state.device)
            name = self._choose(steps, (state, x, dt, *rest), options)
            self._step_of[key] = steps[name]
            self._ran["state"] = name
        return self._step_of[key](state, x, dt, *rest, **options)

    def _steps(self, device: torch.device) -> dict[str, Step]:
        """The steps that may run on `device`, by name."""
        wanted = self._selection.wanted.state
        steps: dict[str, Step] = {TORCH: getattr(self._original, "__wrapped__", self._original)}
        if self._theirs != TORCH and wanted in ("auto", MAMBA_SSM):
            steps[self._theirs] = self._original
        if self._selection.may_use_triton("state", device):
            steps[TRITON] = triton_step
        return steps

    def _choose(
        self, steps: dict[str, Step], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> str:
        """The step to take: the one that is chosen by name, if it works, else the fastest."""
        if len(steps) == 1:
            return next(iter(steps))
        state, *rest = arguments

        def on_a_copy(step: Step, _: int) -> Tensor:
            return step(state.clone(), *rest, **options)

        trials = {name: partial(on_a_copy, step) for name, step in steps.items()}
        names = list(self._selection.working(trials, steps.keys() - {TORCH}))
        if self._selection.wanted.state in names or len(names) == 1:
            return names[-1]
        # On a scratch state each: a step changes its state, and making a copy would count.
        scratch = {name: state.clone() for name in names}

        def on_scratch(name: str, _: int) -> None:
            steps[name](scratch[name], *rest, **options)

        key = ("state step", "x".join(map(str, state.shape)), *setting(rest[0]))
        return self._selection.fastest(key, {name: partial(on_scratch, name) for name in names})


class _DeltaStepper(_Stepper):
    """Stands in for the step of a delta rule, which transformers has bound or wrote itself."""

    def _steps(self, device: torch.device) -> dict[str, Step]:
        del device
        if self._theirs != TORCH:
            return {self._theirs: self._original}
        return {TORCH: getattr(self._original, "__wrapped__", self._original)}


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
