"""Mixers of Mamba-1: mamba, falcon_mamba, jamba and zamba.

They bind the scan and the single step as functions of the family's module and name their parts
alike. Zamba's "Mamba heads" have weights of their own each, and so a B and C: they are groups.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites.state import StateSite

SCAN = "mamba_selective_scan"
STEP = "mamba_selective_state_update"
"""Names of the functions that a module of Mamba-1 mixers binds."""
FUSED = "mamba_inner_fn"
"""What some of them also bind: a whole mixer in one kernel, for training."""
NORMS = {"B": "b_layernorm", "C": "c_layernorm"}
"""What Falcon-Mamba and Jamba normalise B and C by, over the channels."""
_SIZES = ("intermediate_size", "ssm_state_size", "time_step_rank", "layer_idx", "out_proj", "D")


@dataclass(frozen=True, eq=False)
class SelectiveSite(StateSite):
    """The state of a Mamba-1 mixer: every entry of the inner width is a head of one row."""

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """See `StateSite.projection`; times the weights of the norm behind it."""
        mixer: Any = self.mixer
        start = mixer.time_step_rank + (self.n_state if which == "C" else 0)
        rows = self.weight()[:, start : start + self.n_state]
        norm = getattr(mixer, NORMS[which], None)
        return rows if norm is None else rows * norm.weight[:, None]

    def weight(self) -> Tensor:
        """What makes dt, B and C, in this order, of each group: (n_groups, rank + 2 n_state, d)."""
        mixer: Any = self.mixer
        one = hasattr(mixer, "x_proj")  # Zamba has a tensor of all groups
        rows: Tensor = mixer.x_proj.weight[None] if one else mixer.x_proj_weight
        return rows


def recognise(name: str, module: nn.Module) -> StateSite | None:
    """See `keepset.sites.memories.Memory`."""
    code = sys.modules.get(type(module).__module__)
    if not (hasattr(code, SCAN) and hasattr(code, STEP) and hasattr(module, "A_log")):
        return None
    mixer: Any = module
    missing = [part for part in _SIZES if not hasattr(mixer, part)]
    if not (hasattr(mixer, "x_proj") or hasattr(mixer, "x_proj_weight")):
        missing.append("x_proj")
    if missing:
        raise ModelError(
            f"{name}: {type(module).__name__} scans like Mamba-1 but has no {', '.join(missing)};"
            " it needs an adapter in keepset/sites/memories/selective.py"
        )
    return SelectiveSite(
        kind="state",
        layer=int(mixer.layer_idx),
        name=name,
        memory="selective",
        mixer=mixer,
        n_groups=getattr(mixer, "n_mamba_heads", 1),
        n_state=mixer.ssm_state_size,
        n_heads=mixer.intermediate_size,
        head_dim=1,
    )
