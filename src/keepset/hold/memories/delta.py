"""The memory of the gated delta rule (arXiv:2412.06464), also with a decay for each channel (KDA,

arXiv:2510.26692): H(t) = H(t-1) diag(a(t)); then H(t) += b(t) (v(t) - H(t) k(t)) k(t)^T, and
y(t) = H(t) q(t) / sqrt(n_state). A channel is an entry of k and q, one column of H.

Two things differ from Mamba-2. What is written depends on what is there: a channel that is left out
changes H k, and so what the others hold. And k and q are divided by their norms, over all channels.

A static rule leaves channels out before the norm, as a mixer with fewer channels does, and divides
by the root of the number that is left: this is what a smaller checkpoint computes. Where a set is
chosen again, k and q are multiplied after the norm: what was written keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.memories import (
    Action,
    refuse_carried,
    running_site,
    select_channels,
    select_rows,
)
from keepset.hold.recurrence import Recurrence, Scan
from keepset.kernels.dispatch import NUMBA_DELTA, standing_in
from keepset.kernels.naive import normalised
from keepset.sites.memories import code_of
from keepset.sites.memories.delta import FUNCTIONS, key_and_query_rows
from keepset.sites.state import StateSite

if TYPE_CHECKING:
    from keepset.kernels.numba_scan import Inputs


@contextmanager
def seeing(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """See `Memory`. Functions of transformers are replaced, not its layers."""
    del model
    with ExitStack() as stack:
        running = stack.enter_context(running_site(sites))
        modules: list[ModuleType] = list(dict.fromkeys(code_of(site.mixer) for site in sites))
        for module in modules:
            passage, step = next(pair for pair in FUNCTIONS if hasattr(module, pair[0]))
            functions = {
                passage: _seen(getattr(module, passage), running, action, single=False),
                step: _seen(getattr(module, step), running, action, single=True),
            }
            stack.enter_context(standing_in([module], functions))
        yield


def _seen(
    original: Callable[..., Any],
    running: Sequence[StateSite | None],
    action: Action,
    *,
    single: bool,
) -> Callable[..., Any]:
    compiled = original.__module__ == NUMBA_DELTA

    def seen(query, key, value, **rest):  # type: ignore[no-untyped-def]
        site = running[0]
        if site is None:
            return original(query, key, value, **rest)
        rest = dict(rest)
        g, beta = rest.pop("g"), rest.pop("beta")
        scan = DeltaScan(query, key, value, g, beta, rest, original, compiled=compiled)
        if single:
            return scan.pruned(action.step(site).to(key.device)).run()
        result = action.scan(site, scan)
        if isinstance(result, Scan):
            return result.run()
        if scan.carries:
            refuse_carried(site)
        return result.to(query.dtype), None

    return seen


@dataclass(frozen=True)
class DeltaScan(Scan):
    """The arguments of a scan.

    Attributes:
        query, key: (batch, tokens, groups, n_state), before the norm where `rest` says that the
            function divides by it.
        value: (batch, tokens, heads, head_dim).
        g: (batch, tokens, heads), the log of the decay; or one for each channel, with n_state.
        beta: (batch, tokens, heads), how much of the difference is written.
        rest: The other arguments: use_qk_l2norm_in_kernel, initial_state, ...
        function: What runs it, with transformers' arguments.
        gain: What y is multiplied by, (heads,); None for nothing.
        compiled: Whether numba runs the recurrence, else torch.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    g: Tensor
    beta: Tensor
    rest: dict[str, Any]
    function: Callable[..., Any]
    gain: Tensor | None = field(default=None)
    interacts: bool = True
    compiled: bool = False

    @property
    def tokens(self) -> int:
        """See `Scan`."""
        return self.key.shape[1]

    @property
    def carries(self) -> bool:
        """See `Scan`."""
        wants = bool(self.rest.get("output_final_state"))
        return wants or self.rest.get("initial_state") is not None

    @property
    def normalises(self) -> bool:
        """Whether the function divides q and k by their norms."""
        return bool(self.rest.get("use_qk_l2norm_in_kernel"))

    @cached_property
    def units(self) -> tuple[Tensor, Tensor]:
        """Query and key after the norm, float32."""
        query, key = self.query.float(), self.key.float()
        if self.normalises:
            query, key = normalised(query), normalised(key)
        return query, key

    @property
    def C(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """What is read of each channel: (batch, tokens, groups, n_state) float32."""
        query = self.units[0]
        return query / math.sqrt(query.shape[-1])

    def run(self) -> Any:
        """See `Scan`."""
        y, state = self.function(
            self.query, self.key, self.value, g=self.g, beta=self.beta, **self.rest
        )
        if self.gain is not None:
            y = y * self.gain[:, None].to(y.dtype)
        return y.to(self.value.dtype), state

    def output(self) -> Tensor:
        """See `Scan`."""
        y: Tensor = replace(self, rest={**self.rest, "output_final_state": False}).run()[0]
        return y

    def compiled_inputs(self) -> Inputs | None:
        """See `Scan`."""
        if not self.compiled:
            return None
        from keepset.kernels import numba_delta  # imported at its first use

        tensors = (self.query, self.key, self.value, self.g, self.beta)
        return numba_delta.inputs(*tensors, self.normalises)

    def masked(self, write: Tensor | None = None, read: Tensor | None = None) -> DeltaScan:
        """See `Scan`."""
        query, key = self.units
        query = query if read is None else query * read.to(query.dtype)
        key = key if write is None else key * write.to(key.dtype)
        return replace(
            self, query=query, key=key, rest={**self.rest, "use_qk_l2norm_in_kernel": False}
        )

    def pruned(self, kept: Tensor) -> DeltaScan:
        """Before the norm; as many channels as the fullest group keeps where no state is carried.

        In other groups the rest of these are zero.
        """
        counts = kept.sum(dim=1).clamp_(min=1)
        width = self.key.shape[-1]
        query, key, g = self.query, self.key, self.g
        per_channel = g.ndim == key.ndim
        marks = kept.to(key.dtype)
        if not self.carries:
            width = int(counts.max())
            marks, channels = kept.to(torch.int8).sort(dim=1, descending=True, stable=True)
            marks, channels = marks[:, :width].to(key.dtype), channels[:, :width]
            shape = (*key.shape[:3], width)
            query, key = (values.gather(3, channels.expand(shape)) for values in (query, key))
            if per_channel:
                g = g.gather(3, channels.expand(shape))
        # The function divides by the root of `width`, a mixer that has only these by its own.
        gain = (width / counts).sqrt().repeat_interleave(self.value.shape[2] // len(counts))
        return replace(
            self,
            query=query * marks,
            key=key * marks,
            g=g,
            gain=None if bool((counts == width).all()) else gain,
        )

    def recurrence(self) -> Recurrence:
        """See `Scan`."""
        return DeltaRecurrence(self)

    def with_skip(self, y: Tensor) -> Tensor:
        """See `Scan`."""
        return y


class DeltaRecurrence(Recurrence):
    """The recurrence of a scan."""

    def __init__(self, scan: DeltaScan) -> None:
        batch, tokens, groups, n = scan.key.shape
        heads, head_dim = scan.value.shape[2:]
        grouped = (batch, tokens, groups, heads // groups)
        self._decay = scan.g.float().exp().view(*grouped, 1, -1)
        self._beta = scan.beta.float().view(*grouped, 1, 1)
        self._value = scan.value.float().view(*grouped, head_dim, 1)
        self._key = scan.units[1][:, :, :, None, None]
        self.C = scan.C
        self.tokens = tokens
        self._shape = (batch, groups, heads // groups, head_dim, n)

    def advance(self, state: Tensor, t: int, write: Tensor | None = None) -> Tensor:
        """See `Recurrence`."""
        key = self._key[:, t] if write is None else self._key[:, t] * write[:, :, None, None]
        state.mul_(self._decay[:, t])
        held = (state * key).sum(dim=-1, keepdim=True)
        return state.addcmul_((self._value[:, t] - held) * self._beta[:, t], key)


def cut(site: StateSite, units: Tensor, n_state: int) -> None:
    """Leave the rows that make these channels of k and q.

    Raises:
        ModelError: keys and values have one size in the configuration (KDA).
    """
    mixer: Any = site.mixer
    if not hasattr(mixer, "head_k_dim"):
        raise ModelError(
            f"{site.name}: keys and values have one size in this family, so transformers has no"
            " mixer with fewer channels; hold the set as a static rule instead"
        )
    every = torch.arange(site.n_units)
    left = torch.isin(every, units.cpu())
    marks: dict[nn.Linear, Tensor] = {}  # one map may make both, beside other things
    for linear, rows in key_and_query_rows(site):
        marks.setdefault(linear, torch.ones(linear.out_features, dtype=torch.bool))[rows] = left
    for linear, kept in marks.items():
        select_rows(linear, kept.nonzero()[:, 0].to(linear.weight.device))
        linear.out_features = int(kept.sum())
    values = 2 * site.n_units + torch.arange(mixer.value_dim)
    channels = torch.cat([every[left], site.n_units + every[left], values])
    select_channels(mixer.conv1d, channels.to(mixer.conv1d.weight.device))
    mixer.head_k_dim = n_state
    mixer.key_dim = n_state * site.n_groups
    mixer.conv_dim = len(channels)
