"""The memory of Griffin's real-gated linear recurrent unit (De et al. 2024, arXiv:2402.19427).

h(t) = a(t) h(t-1) + b(t), entry by entry (equation 4), and y(t) = h(t) c(t) goes to the output
projection: b is the gated input, and c the gelu of the block's second branch. A channel is an entry
of h, written by b and read by c. Nothing is summed over channels: y has one entry for each.

The gates in a and b read the input of a whole block of entries. So it stays when a channel is left
out of the state, and a channel cannot be cut out of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.memories import Action, refuse_carried
from keepset.hold.recurrence import AdditiveRecurrence, AdditiveScan, Recurrence, Scan
from keepset.sites.memories.rglru import SCAN
from keepset.sites.state import StateSite


@dataclass(frozen=True)
class RgLruScan(AdditiveScan):
    """What a unit hands to its recurrence: B is b, and C is c.

    Attributes:
        function: transformers' own, which gives h (batch, tokens, n_state) and the last state.
        inputs: Its arguments by name.
    """

    function: Callable[..., tuple[Tensor, Any]]
    inputs: dict[str, Any]

    @property
    def carries(self) -> bool:
        """See `Scan`."""
        return self.inputs["recurrent_states"] is not None

    def run(self) -> tuple[Tensor, Any]:
        """h (batch, tokens, n_state), and the last state."""
        return self.function(**{**self.inputs, "hidden_states": self.B[:, :, 0]})

    def output(self) -> Tensor:
        """See `Scan`."""
        return self.run()[0][:, :, None] * self.C

    def recurrence(self) -> Recurrence:
        """See `Scan`."""
        decay = (self.inputs["recurrent_gate"] * ~self.inputs["reset"]).float()
        ones = decay.new_ones(*decay.shape[:2], 1, 1, 1, 1)
        return _Entries(decay[:, :, None, None, None], ones, self)


class _Entries(AdditiveRecurrence):
    """A recurrence whose channels are read one by one, not summed."""

    def read(self, state: Tensor, start: int, stop: int, kept: Tensor) -> Tensor:
        """See `Recurrence.read`; y is (batch, stop - start, 1, n_state)."""
        kept = kept.to(state.dtype)
        rows = [self.advance(state, t, kept)[:, :, 0, 0] * self.C[:, t] for t in range(start, stop)]
        return torch.stack(rows, dim=1)


class _Pass:
    """One forward pass of a block."""

    def __init__(self, site: StateSite) -> None:
        self._site = site
        self.c: Tensor | None = None
        """(batch, tokens, n_state), once the second branch has run."""
        self.y: Tensor | None = None
        """(batch, tokens, n_state), where a rule makes it another one than the block does."""

    def run(
        self, original: Callable[..., Any], inputs: dict[str, Any], action: Action
    ) -> tuple[Tensor, Any]:
        """h and the last state, under a rule."""
        b = inputs["hidden_states"]
        assert self.c is not None
        scan = RgLruScan(b[:, :, None], self.c[:, :, None], original, inputs)
        if scan.carries and scan.tokens == 1:
            held: Scan | Tensor = scan.pruned(action.step(self._site).to(b.device))
        else:
            held = action.scan(self._site, scan)
        if not isinstance(held, RgLruScan):
            assert isinstance(held, Tensor)
            if scan.carries:
                refuse_carried(self._site)
            self.y = held[:, :, 0].to(b.dtype)
            return b, None
        h, state = held.run()
        if held.C is not scan.C:
            self.y = h * held.C[:, :, 0]
        return h, state


@contextmanager
def seeing(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """See `Memory`. The recurrence is replaced, and what the output projection is given."""
    del model
    running: list[_Pass | None] = [None]
    by_mixer = {site.mixer: site for site in sites}

    def enter(mixer: nn.Module, *_: Any) -> None:
        running[0] = _Pass(by_mixer[mixer])

    def leave(*_: Any) -> None:
        running[0] = None

    def remember(_: nn.Module, __: Any, c: Tensor) -> None:
        if running[0] is not None:
            running[0].c = c

    def replaced(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        current = running[0]
        return args if current is None or current.y is None else (current.y, *args[1:])

    def seen(original: Callable[..., Any]) -> Callable[..., Any]:
        def held(**inputs: Any) -> Any:
            if running[0] is None:
                return original(**inputs)
            return running[0].run(original, inputs, action)

        return held

    with ExitStack() as stack:
        for site in sites:
            mixer: Any = site.mixer
            stack.enter_context(mixer.register_forward_pre_hook(enter))
            stack.enter_context(mixer.register_forward_hook(leave, always_call=True))
            stack.enter_context(mixer.act_fn.register_forward_hook(remember))
            stack.enter_context(mixer.linear_out.register_forward_pre_hook(replaced))
            stack.enter_context(_method(mixer.rg_lru, SCAN, seen(getattr(mixer.rg_lru, SCAN))))
        yield


@contextmanager
def _method(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let `function` stand in for a method of one module."""
    before = module.__dict__.get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


def cut(site: StateSite, units: Tensor, n_state: int) -> None:
    """Refuse.

    Raises:
        ModelError: always: what makes a channel is read by the gates of others.
    """
    del units, n_state
    raise ModelError(
        f"{site.name}: the gates of an RG-LRU read what is written to all channels of their block,"
        " so no channel can be cut out of the weights; hold the rule on the running model"
    )
