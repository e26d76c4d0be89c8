"""The kinds of recurrent memory whose sites are found, one module for each.

A module defines `recognise`: (name, module) -> a site, or None where the module is no mixer of its
kind. Mixers are found by what they are, so a new family of a known kind needs no line here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

from torch import nn

from keepset.sites.state import StateSite

MEMORIES = ("mamba2", "delta", "selective", "lightning", "rglru")
"""Names of the kinds, as in `StateSite.memory`; each is a module here and in `hold.memories`."""


class Memory(Protocol):
    """What the module of a kind of memory defines."""

    def recognise(self, name: str, module: nn.Module) -> StateSite | None:
        """The site of a mixer of this kind; None for any other module.

        Raises:
            ModelError: it is such a mixer, but a part is missing.
        """


def code_of(mixer: nn.Module) -> ModuleType:
    """The Python module that a mixer's class is in: mixers look up functions there."""
    return sys.modules[type(mixer).__module__]


def memories() -> list[Memory]:
    """The modules of all kinds."""
    return [cast(Memory, import_module(f"{__name__}.{name}")) for name in MEMORIES]
