"""Blocks of Griffin's real-gated linear recurrent unit: recurrent_gemma."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites.state import StateSite

SCAN = "_rnn_scan"
"""The method of the unit that runs its recurrence."""
_PARTS = ("linear_x", "linear_y", "linear_out", "act_fn", "lru_width")


@dataclass(frozen=True, eq=False)
class RgLruSite(StateSite):
    """The state of one block: one number per entry of its width, which is a channel."""

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """See `StateSite.projection`; of B before the convolution and the gates."""
        mixer: Any = self.mixer
        weight: Tensor = (mixer.linear_x if which == "B" else mixer.linear_y).weight
        return weight[None]


def recognise(name: str, module: nn.Module) -> StateSite | None:
    """See `keepset.sites.memories.Memory`."""
    if not hasattr(module, "rg_lru"):
        return None
    mixer: Any = module
    depth = re.search(r"\.(\d+)\.", name)  # the block does not know its own
    missing = [part for part in _PARTS if not hasattr(mixer, part)]
    if missing or depth is None or not hasattr(mixer.rg_lru, SCAN):
        raise ModelError(
            f"{name}: {type(module).__name__} has an RG-LRU but no"
            f" {', '.join(missing) or SCAN}; it needs an adapter in"
            " keepset/sites/memories/rglru.py"
        )
    return RgLruSite(
        kind="state",
        layer=int(depth[1]),
        name=name,
        memory="rglru",
        mixer=mixer,
        n_groups=1,
        n_state=mixer.lru_width,
        n_heads=1,
        head_dim=1,
    )
