"""Where a model's units are.

One module per kind of place: `ffn` (and any other inputs of a linear map), `state`. Nothing here
imports torch.
"""

from __future__ import annotations

from typing import Any, Protocol


class AnySite(Protocol):
    """What every site says of itself, whatever its kind."""

    @property
    def kind(self) -> str:
        """The name of its kind, as in `keepset.rules.kinds`."""

    @property
    def layer(self) -> int:
        """The index of its decoder layer."""

    @property
    def name(self) -> str:
        """The path of the module that holds it."""

    @property
    def key(self) -> str:
        """Its name in files and tables, e.g. "ffn.003"; unique within a model."""

    @property
    def n_units(self) -> int:
        """How many units it holds."""


def __getattr__(name: str) -> Any:
    from keepset.sites import ffn, state

    if name == "find_sites":
        return ffn.find_ffn_sites
    if name not in ("Projection", "Site", "StateSite", "find_state_sites"):
        raise AttributeError(name)
    return getattr(state if hasattr(state, name) else ffn, name)
