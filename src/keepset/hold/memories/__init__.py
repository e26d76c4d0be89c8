"""What differs between kinds of recurrent memory, one module for each.

A module defines how its scans are seen (`seeing`), and how channels are cut out of the weights
(`cut`). `keepset.sites.memories` finds the sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from typing import Any, NoReturn, Protocol, cast

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.recurrence import Scan
from keepset.sites.state import StateSite

See = Callable[[StateSite, Scan], Scan | Tensor]
"""Sees a scan; returns one to run in its place, or y (batch, tokens, heads, head_dim)."""


class Action(Protocol):
    """Sees every scan of a mixer, and decides what runs."""

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        """A scan to run in its place, or its result y (batch, tokens, heads, head_dim)."""
        ...

    def step(self, site: StateSite) -> Tensor:
        """The channels that a single cached step uses: (groups, n_state) bool.

        Raises:
            ModelError: the action needs whole passages.
        """
        ...


class Memory(Protocol):
    """What the module of a kind of memory defines."""

    def seeing(
        self, model: nn.Module, sites: Sequence[StateSite], action: Action
    ) -> AbstractContextManager[None]:
        """Have `action` see the scans of the sites; everything is put back on exit."""

    def cut(self, site: StateSite, units: Tensor, n_state: int) -> None:
        """Leave the channels `units` (k,) int64, `n_state` of each group, in the weights.

        Raises:
            ModelError: transformers has no smaller mixer of this kind.
        """


def of(site: StateSite) -> Memory:
    """The module of a site's kind of memory."""
    return cast(Memory, import_module(f"{__name__}.{site.memory}"))


@contextmanager
def scanning(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """Have `action` see the scans of every site; other mixers run as they are.

    Layers of transformers stay as they are. Everything is put back on exit, also after an
    exception.
    """
    with ExitStack() as stack:
        for name in dict.fromkeys(site.memory for site in sites):
            part = [site for site in sites if site.memory == name]
            stack.enter_context(of(part[0]).seeing(model, part, action))
        yield


@contextmanager
def running_site(sites: Sequence[StateSite]) -> Iterator[list[StateSite | None]]:
    """The site whose mixer runs, as the one entry of a list; None between them."""
    running: list[StateSite | None] = [None]
    by_mixer = {site.mixer: site for site in sites}

    def enter(mixer: nn.Module, *_: Any) -> None:
        running[0] = by_mixer[mixer]

    def leave(*_: Any) -> None:
        running[0] = None

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.mixer.register_forward_pre_hook(enter))
            stack.enter_context(site.mixer.register_forward_hook(leave, always_call=True))
        yield running


def refuse_carried(site: StateSite) -> NoReturn:
    """Refuse to replace a scan whose state goes on.

    Raises:
        ModelError: always.
    """
    raise ModelError(f"{site.name}: this rule runs on whole passages: give use_cache=False")


def select_rows(module: nn.Module, rows: Tensor) -> None:
    """Leave `rows` of a module's weight and bias."""
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            parameter = nn.Parameter(tensor.detach()[rows].clone(), requires_grad=False)
            setattr(module, name, parameter)


def select_channels(convolution: nn.Module, channels: Tensor) -> None:
    """Leave `channels` of a depthwise convolution."""
    select_rows(convolution, channels)
    for size in ("in_channels", "out_channels", "groups"):
        setattr(convolution, size, len(channels))
