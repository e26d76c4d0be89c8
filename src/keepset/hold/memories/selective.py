"""The memory of Mamba-1 (Gu and Dao 2023, algorithm 2): mamba, falcon_mamba, jamba and zamba.

H(t) = exp(dt(t) A) H(t-1) + dt(t) x(t) B(t)^T and y(t) = H(t) C(t) + D x(t), as in Mamba-2, but
with a decay of its own for every entry of H, and heads of one row each. Channels do not influence
one another. All heads of a group share B and C; Zamba scans one group after the other.

Falcon-Mamba and Jamba divide B and C by their root mean square over the channels. A smaller mixer
takes it over its own, and so does a static rule over what it keeps. Windows leave channels out
behind the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepset.hold.memories import Action, refuse_carried
from keepset.hold.recurrence import AdditiveRecurrence, AdditiveScan, Recurrence, Scan
from keepset.hold.slices import twin
from keepset.kernels.dispatch import standing_in
from keepset.kernels.naive import time_steps
from keepset.sites.memories import code_of
from keepset.sites.memories.selective import FUSED, NORMS, SCAN, STEP
from keepset.sites.state import StateSite

Results = tuple[Tensor, ...]
"""What a scan gives: y (batch, heads, tokens), and the last state where it is wanted."""


@dataclass(frozen=True)
class _Call:
    """One call of transformers' scan, for one group of heads."""

    run: Callable[..., Any]
    """Scans with B and C, and all else as it was but for what is named."""
    x: Tensor  # (batch, heads, tokens)
    dt: Tensor  # the same, before bias and softplus
    A: Tensor  # (heads, n_state), negative
    B: Tensor  # (batch, n_state, tokens)
    C: Tensor  # the same
    D: Tensor | None  # (heads,)
    z: Tensor | None  # as x; y is multiplied by silu(z)
    rest: dict[str, Any]
    promise: Results
    """Empty tensors of the shape of its results."""

    @property
    def carries(self) -> bool:
        """Whether the last state is wanted."""
        return bool(self.rest.get("return_last_state"))

    def results(self, B: Tensor, C: Tensor) -> Results:
        """What it gives with B and C."""
        results = self.run(B, C)
        return results if self.carries else (results,)


Narrow = Callable[[Tensor], tuple[Tensor, Tensor]]
"""kept (1, n_state) -> B and C (batch, tokens, 1, n_state) of a mixer of these channels alone."""


@dataclass(frozen=True)
class SelectiveScan(AdditiveScan):
    """The scans of all groups of a mixer.

    Attributes:
        calls: One of each group.
        narrow: Where B and C are normalised over the channels, what gives them for fewer.
    """

    calls: Sequence[_Call]
    narrow: Narrow | None

    @property
    def carries(self) -> bool:
        """See `Scan`."""
        return self.calls[0].carries

    def run(self) -> list[Results]:
        """The results of each group."""
        return [call.results(B, C) for call, B, C in self._groups()]

    def output(self) -> Tensor:
        """See `Scan.output`; before the gate."""
        changes = {"z": None, "return_last_state": False}
        parts = [call.run(B, C, **changes) for call, B, C in self._groups()]
        return torch.cat(parts, dim=1).transpose(1, 2)[..., None]

    def _groups(self) -> Iterator[tuple[_Call, Tensor, Tensor]]:
        for group, call in enumerate(self.calls):
            B, C = (values[:, :, group].transpose(1, 2) for values in (self.B, self.C))
            yield call, B, C

    def pruned(self, kept: Tensor) -> SelectiveScan:
        """See `Scan.pruned`; no narrower: the time of the scan hardly depends on n_state."""
        if self.narrow is None:
            return self.masked(kept, kept)
        B, C = self.narrow(kept)
        return replace(self, B=B, C=C)

    def recurrence(self) -> Recurrence:
        """See `Scan.recurrence`."""
        dt, bias = self._joined("dt", 1), self.calls[0].rest.get("delta_bias")
        if bias is not None:
            bias = torch.cat([call.rest["delta_bias"] for call in self.calls])
        softplus = self.calls[0].rest.get("delta_softplus", False)
        step = time_steps(dt.transpose(1, 2), bias, softplus, (0.0, float("inf")))
        grouped = (*step.shape[:2], len(self.calls), -1)
        A = self._joined("A", 0).float()
        decay = (step[..., None] * A).exp().view(*grouped, 1, A.shape[1])
        gain = (self._x() * step).view(*grouped, 1, 1)
        return AdditiveRecurrence(decay, gain, self)

    def with_skip(self, y: Tensor) -> Tensor:
        """See `Scan.with_skip`; before the gate."""
        if self.calls[0].D is None:
            return y
        return y + (self._x() * self._joined("D", 0))[..., None]

    def _x(self) -> Tensor:
        return self._joined("x", 1).transpose(1, 2).float()

    def _joined(self, name: str, dim: int) -> Tensor:
        return torch.cat([getattr(call, name) for call in self.calls], dim)


class _Pass:
    """One forward pass of a mixer.

    A rule sees all groups at once. Of a mixer that scans group after group, the results of all but
    the last are promised, and filled in when the last is called.
    """

    def __init__(self, site: StateSite, action: Action) -> None:
        self._site, self._action = site, action
        self.normed: dict[str, Tensor] = {}
        """What the norms of B and C were given, where there are some: (batch, tokens, n_state)."""
        self._calls: list[_Call] = []
        self._steps = 0

    def scan(self, call: _Call) -> Results:
        """What `call` gives under the rule."""
        self._calls.append(call)
        if len(self._calls) < self._site.n_groups:
            return call.promise
        B, C = (
            torch.stack([getattr(one, name).transpose(1, 2) for one in self._calls], dim=2)
            for name in ("B", "C")
        )
        scan = SelectiveScan(B, C, self._calls, self.narrow if self.normed else None)
        held = self._action.scan(self._site, scan)
        if held is scan:  # bit by bit what transformers does: B and C in its own layout
            results = [one.results(one.B, one.C) for one in self._calls]
        else:
            results = held.run() if isinstance(held, Scan) else self._gated(held)
        for earlier, parts in zip(self._calls, results[:-1], strict=False):
            for promised, part in zip(earlier.promise, parts, strict=True):
                promised.copy_(part)
        return results[-1]

    def _gated(self, y: Tensor) -> list[Results]:
        """The results of all groups whose y (batch, tokens, heads, 1) a rule has computed."""
        if self._calls[0].carries:
            refuse_carried(self._site)
        parts = y[..., 0].transpose(1, 2).chunk(self._site.n_groups, dim=1)
        return [
            (part if call.z is None else part * F.silu(call.z),)
            for part, call in zip(parts, self._calls, strict=True)
        ]

    def step(self, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """B and C (batch, n_state) of one token and of the next group, under the rule."""
        kept = self._action.step(self._site).to(B.device)
        if self.normed:
            B, C = self.narrow(kept)
            return B[:, 0, 0], C[:, 0, 0]
        mask = kept[self._steps].to(B.dtype)
        self._steps += 1
        return B * mask, C * mask

    def narrow(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """See `Narrow`: the norms' own code, on the channels that are kept."""
        channels = kept[0].nonzero()[:, 0]
        B, C = (self._normalised(which, channels) for which in NORMS)
        return B[:, :, None], C[:, :, None]

    def _normalised(self, which: str, channels: Tensor) -> Tensor:
        values, norm = self.normed[which], getattr(self._site.mixer, NORMS[which])
        weights = {name: weight[channels] for name, weight in norm.named_parameters()}
        full = torch.zeros_like(values)
        full[..., channels] = twin(norm, weights).forward(values[..., channels])
        return full


@contextmanager
def seeing(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """See `Memory`. Functions of transformers are replaced, not its layers."""
    del model
    running: list[_Pass | None] = [None]
    by_mixer = {site.mixer: site for site in sites}

    def enter(mixer: nn.Module, *_: Any) -> None:
        running[0] = _Pass(by_mixer[mixer], action)

    def leave(*_: Any) -> None:
        running[0] = None

    def remembered(which: str) -> Callable[..., None]:
        def remember(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if running[0] is not None:
                running[0].normed[which] = args[0]

        return remember

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.mixer.register_forward_pre_hook(enter))
            stack.enter_context(site.mixer.register_forward_hook(leave, always_call=True))
            for which, name in NORMS.items():
                if (norm := getattr(site.mixer, name, None)) is not None:
                    stack.enter_context(norm.register_forward_pre_hook(remembered(which)))
        for module in dict.fromkeys(code_of(site.mixer) for site in sites):
            functions = {
                SCAN: _seen_scan(getattr(module, SCAN), running),
                STEP: _seen_step(getattr(module, STEP), running),
            }
            if hasattr(module, FUSED):
                functions[FUSED] = _not_fused
            stack.enter_context(standing_in([module], functions))
        yield


def _not_fused(*_: Any, **__: Any) -> None:
    """Have a mixer that trains scan as others do: so it does where there is no fused kernel."""


def _seen_scan(original: Callable[..., Any], running: Sequence[_Pass | None]) -> Callable[..., Any]:
    def seen(x, dt, A, B, C, D=None, z=None, **rest):  # type: ignore[no-untyped-def]
        if running[0] is None:
            return original(x, dt, A, B, C, D=D, z=z, **rest)

        def run(B: Tensor, C: Tensor, **changes: Any) -> Any:
            return original(x, dt, A, B, C, **{"D": D, "z": z, **rest, **changes})

        shapes = [x.shape, (len(x), *A.shape)] if rest.get("return_last_state") else [x.shape]
        wide = torch.promote_types(x.dtype, torch.float32)
        promise = tuple(x.new_empty(shape, dtype=wide) for shape in shapes)
        results = running[0].scan(_Call(run, x, dt, A, B, C, D, z, rest, promise))
        return results if len(results) > 1 else results[0]

    return seen


def _seen_step(original: Callable[..., Any], running: Sequence[_Pass | None]) -> Callable[..., Any]:
    def seen(state, x, dt, A, B, C, *rest, **options):  # type: ignore[no-untyped-def]
        if running[0] is not None:
            B, C = running[0].step(B, C)
        return original(state, x, dt, A, B, C, *rest, **options)

    return seen


def cut(site: StateSite, units: Tensor, n_state: int) -> None:
    """Leave the rows that make these channels' B and C, their decays, and their norms' weights."""
    mixer: Any = site.mixer
    rank = mixer.time_step_rank
    channels = (units % site.n_state).view(site.n_groups, n_state).to(mixer.A_log.device)
    first = torch.arange(rank, device=channels.device).expand(site.n_groups, -1)
    rows = torch.cat([first, rank + channels, rank + site.n_state + channels], dim=1)
    if hasattr(mixer, "x_proj_weight"):  # Zamba's, one for each group
        _set(mixer, "x_proj_weight", mixer.x_proj_weight.take_along_dim(rows[..., None], dim=1))
        _set(mixer, "A_log", mixer.A_log.take_along_dim(channels[:, None], dim=2))
    else:
        _set(mixer.x_proj, "weight", mixer.x_proj.weight[rows[0]])
        mixer.x_proj.out_features = rows.shape[1]
        _set(mixer, "A_log", mixer.A_log[:, channels[0]])
    for name in NORMS.values():
        if (norm := getattr(mixer, name, None)) is not None:
            _set(norm, "weight", norm.weight[channels[0]])
    mixer.ssm_state_size = n_state


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or a buffer by a copy of `tensor`."""
    tensor = tensor.detach().clone()
    if name in dict(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, name, tensor)
