"""Layers of lightning attention: minimax."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites.state import StateSite

PADDING = "apply_mask_to_padding_states"
"""The function of the layer's module that is given q, k and v, right before the recurrence."""
_PARTS = ("act_fn", "qkv_proj", "norm", "head_dim", "num_attention_heads", "layer_idx")


@dataclass(frozen=True, eq=False)
class LightningSite(StateSite):
    """The state of one layer: every head has a key of its own, whose entries are its channels."""

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """See `StateSite.projection`."""
        mixer: Any = self.mixer
        # q, k and v of one head after the other
        rows: Tensor = mixer.qkv_proj.weight.unflatten(0, (self.n_heads, 3, self.head_dim))
        return rows[:, 1 if which == "B" else 0]


def recognise(name: str, module: nn.Module) -> StateSite | None:
    """See `keepset.sites.memories.Memory`."""
    if not hasattr(module, "slope_rate"):
        return None
    mixer: Any = module
    code = sys.modules.get(type(module).__module__)
    missing = [part for part in _PARTS if not hasattr(mixer, part)]
    if missing or not hasattr(code, PADDING):
        raise ModelError(
            f"{name}: {type(module).__name__} decays like lightning attention but has no"
            f" {', '.join(missing) or PADDING}; it needs an adapter in"
            " keepset/sites/memories/lightning.py"
        )
    return LightningSite(
        kind="state",
        layer=int(mixer.layer_idx),
        name=name,
        memory="lightning",
        mixer=mixer,
        n_groups=mixer.num_attention_heads,
        n_state=mixer.head_dim,
        n_heads=mixer.num_attention_heads,
        head_dim=mixer.head_dim,
    )
