"""Where a model's units are.

One module per kind of place: `ffn` (and any other inputs of a linear map), `state`. Nothing here
imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class AnySite:
    """What every site says of itself, whatever its kind; it also has `n_units`.

    Attributes:
        kind: name of its kind, as in `keepset.rules.kinds`.
        layer: index of its decoder layer, counted from 0 in order of execution.
        name: path of the module that holds it, e.g. "model.layers.3.mlp.down_proj".
    """

    kind: str
    layer: int
    name: str

    @property
    def key(self) -> str:
        """Name of the site in files and tables, e.g. "ffn.003"; unique within a model."""
        return f"{self.kind}.{self.layer:03d}"


def is_plain(weight: Any) -> bool:
    """Whether a tensor holds the numbers themselves, and not codes whose scales stand beside it.

    Numbers of eight bits and fewer are such codes, also where torch calls them floating point.
    """
    return bool(weight.is_floating_point()) and int(weight.element_size()) > 1
