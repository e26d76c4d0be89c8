"""Mixers of Mamba-2.

Every family whose mixer is that of Mamba-2 in transformers binds the scan and the single step as
functions of its module (see `keepset.kernels.dispatch`) and names the parts of the mixer alike.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites.state import SCAN, STEP, StateSite

_PARTS = ("in_proj", "conv1d", "out_proj", "A_log", "D", "dt_bias")
_SIZES = ("num_heads", "head_dim", "n_groups", "ssm_state_size", "intermediate_size", "conv_dim")


@dataclass(frozen=True, eq=False)
class Mamba2Site(StateSite):
    """The state of a Mamba-2 mixer: a group's heads share B and C."""

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """See `StateSite`."""
        mixer: Any = self.mixer
        start = 2 * mixer.intermediate_size + (self.n_units if which == "C" else 0)
        rows = mixer.in_proj.weight[start : start + self.n_units]
        scale = getattr(mixer, "mup_vector", None)
        if scale is not None:  # Falcon-H1 multiplies the projection by constants
            rows = rows * scale.flatten()[start : start + self.n_units, None]
        return rows.view(self.n_groups, self.n_state, -1)


def recognise(name: str, module: nn.Module) -> StateSite | None:
    """See `keepset.sites.memories.Memory`."""
    code = sys.modules.get(type(module).__module__)
    if not (hasattr(code, SCAN) and hasattr(code, STEP) and hasattr(module, "A_log")):
        return None
    mixer: Any = module
    if missing := [part for part in (*_PARTS, *_SIZES) if not hasattr(mixer, part)]:
        raise ModelError(
            f"{name}: {type(module).__name__} scans like Mamba-2 but has no"
            f" {', '.join(missing)}; it needs an adapter in keepset/sites/memories/mamba2.py"
        )
    return Mamba2Site(
        kind="state",
        layer=int(mixer.layer_idx),
        name=name,
        memory="mamba2",
        mixer=mixer,
        n_groups=mixer.n_groups,
        n_state=mixer.ssm_state_size,
        n_heads=mixer.num_heads,
        head_dim=mixer.head_dim,
    )
