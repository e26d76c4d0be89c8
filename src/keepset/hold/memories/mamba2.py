"""The memory of Mamba-2: H(t) = exp(dt(t) A) H(t-1) + dt(t) x(t) B(t)^T, y(t) = H(t) C(t) + D x(t).

(arXiv:2405.21060.) Channels of H do not influence one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from keepset.hold.memories import (
    Action,
    refuse_carried,
    running_site,
    select_channels,
    select_rows,
)
from keepset.hold.recurrence import AdditiveRecurrence, AdditiveScan, Recurrence, Scan
from keepset.kernels.dispatch import NUMBA_SCAN, SCAN, STEP, mixer_modules, standing_in
from keepset.kernels.naive import time_steps
from keepset.sites.state import StateSite

if TYPE_CHECKING:
    from keepset.kernels.numba_scan import Inputs


@contextmanager
def seeing(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """See `Memory`. Functions of transformers are replaced, not its layers."""
    with ExitStack() as stack:
        running = stack.enter_context(running_site(sites))
        for module in mixer_modules(model):
            functions = {
                SCAN: _seen_scan(getattr(module, SCAN), running, action),
                STEP: _seen_step(getattr(module, STEP), running, action),
            }
            stack.enter_context(standing_in([module], functions))
        yield


def _seen_scan(
    original: Callable[..., Any], running: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    compiled = original.__module__ == NUMBA_SCAN

    def seen(x, dt, A, B, C, chunk_size, D=None, **rest):  # type: ignore[no-untyped-def]
        rest = {"chunk_size": chunk_size, **rest}
        scan = Mamba2Scan(B, C, x, dt, A, D, rest, original, compiled)
        site = running[0]
        result = scan if site is None else action.scan(site, scan)
        if isinstance(result, Scan):
            return result.run()
        if scan.wants_state:
            assert site is not None
            refuse_carried(site)
        return result.to(x.dtype)

    return seen


def _seen_step(
    original: Callable[..., Any], running: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    def seen(state, x, dt, A, B, C, *rest, **options):  # type: ignore[no-untyped-def]
        if running[0] is not None:
            mask = action.step(running[0]).to(B.device)
            B, C = B * mask.to(B.dtype), C * mask.to(C.dtype)
        return original(state, x, dt, A, B, C, *rest, **options)

    return seen


@dataclass(frozen=True)
class Mamba2Scan(AdditiveScan):
    """The arguments of a scan.

    Attributes:
        x: (batch, tokens, heads, head_dim).
        dt: (batch, tokens, heads), before bias and softplus.
        A: (heads,), negative.
        D: (heads,), skip connection.
        rest: The other arguments: dt_bias, dt_softplus, dt_limit, ...
        function: What runs it, with transformers' arguments.
        compiled: Whether numba runs the recurrence, else torch.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    D: Tensor | None
    rest: dict[str, Any]
    function: Callable[..., Any]
    compiled: bool = False

    @property
    def wants_state(self) -> bool:
        """Whether the state after the last token is wanted too."""
        return bool(self.rest.get("return_final_states"))

    @property
    def carries(self) -> bool:
        """See `Scan`."""
        return self.wants_state or self.rest.get("initial_states") is not None

    def run(self) -> Any:
        """See `Scan`."""
        rest = dict(self.rest)
        chunk = rest.pop("chunk_size")
        return self.function(self.x, self.dt, self.A, self.B, self.C, chunk, D=self.D, **rest)

    def output(self) -> Tensor:
        """See `Scan`."""
        y: Tensor = replace(self, rest={**self.rest, "return_final_states": False}).run()
        return y

    def compiled_inputs(self) -> Inputs | None:
        """See `Scan`."""
        if not self.compiled:
            return None
        from keepset.kernels.numba_scan import Inputs  # imported at its first use

        return Inputs.of(self.x, self.dt, self.A, self.B, self.C, self.D, **self.rest)

    def pruned(self, kept: Tensor) -> Mamba2Scan:
        """Masked where a state is carried; else with as many channels as the fullest group keeps.

        In other groups the rest of these are zero.
        """
        if self.carries:
            return self.masked(kept, kept)
        n_most = max(1, int(kept.sum(dim=1).max()))  # scans do not take a state of no channels
        marks, channels = kept.to(torch.int8).sort(dim=1, descending=True, stable=True)
        marks, channels = marks[:, :n_most], channels[:, :n_most]
        shape = (*self.B.shape[:3], n_most)
        B, C = (values.gather(3, channels.expand(shape)) for values in (self.B, self.C))
        part = replace(self, B=B, C=C)
        return part if bool(marks.all()) else part.masked(marks, marks)

    def recurrence(self) -> Recurrence:
        """See `Scan`."""
        grouped = (*self.B.shape[:3], self.x.shape[2] // self.B.shape[2])
        step = time_steps(
            self.dt,
            self.rest.get("dt_bias"),
            self.rest.get("dt_softplus", False),
            self.rest.get("dt_limit", (0.0, float("inf"))),
        )
        decay = (step * self.A.float()).exp().view(*grouped, 1, 1)
        gain = (self.x.float() * step[..., None]).view(*grouped, -1, 1)
        return AdditiveRecurrence(decay, gain, self)

    def with_skip(self, y: Tensor) -> Tensor:
        """See `Scan`."""
        return y if self.D is None else y + self.x.float() * self.D[:, None]


def cut(site: StateSite, units: Tensor, n_state: int) -> None:
    """Leave the rows that make these channels' B and C.

    The mixer makes B and C by rows of its input projection and channels of its convolution.
    """
    mixer: Any = site.mixer
    inner, n_units = mixer.intermediate_size, site.n_units
    units = units.to(mixer.in_proj.weight.device)
    first, heads = (torch.arange(n, device=units.device) for n in (inner, site.n_heads))
    # in_proj makes gate, x, B, C and dt, in this order; the convolution sees x, B and C.
    channels = torch.cat([first, inner + units, inner + n_units + units])
    rows = torch.cat([first, inner + channels, 2 * (inner + n_units) + heads])
    select_rows(mixer.in_proj, rows)
    mixer.in_proj.out_features = len(rows)
    select_channels(mixer.conv1d, channels)
    mixer.conv_dim = len(channels)
    mixer.ssm_state_size = n_state
    if hasattr(mixer, "groups_time_state_size"):
        mixer.groups_time_state_size = site.n_groups * n_state
    if isinstance(getattr(mixer, "mup_vector", None), Tensor):
        mixer.mup_vector = mixer.mup_vector[..., rows]
