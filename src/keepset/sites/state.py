"""Find the recurrent-state sites of a causal language model: its Mamba-2 mixers.

Every family whose mixer is that of Mamba-2 in transformers binds the scan and the single step as
functions of its module (see `keepset.kernels.dispatch`) and names the parts of the mixer alike, so
the mixers are found by what they are, and a new family of this kind needs no line here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.errors import ModelError
from keepset.sites import AnySite

SCAN = "mamba2_chunk_scan"
STEP = "mamba2_selective_state_update"
"""Names of the functions that a module of Mamba-2 mixers binds."""
_PARTS = ("in_proj", "conv1d", "out_proj", "A_log", "D", "dt_bias")
_SIZES = ("num_heads", "head_dim", "n_groups", "ssm_state_size", "intermediate_size", "conv_dim")


@dataclass(frozen=True, eq=False)
class StateSite(AnySite):
    """The recurrent state of one Mamba-2 mixer.

    A unit is a state channel: unit `g * n_state + n` is channel n of group g. A group's heads
    share B and C, so a channel is one column of the state of each of them.

    Attributes:
        mixer: the mixer.
        n_groups: groups of heads that share B and C.
        n_state: channels per group (N).
        n_heads: heads in all.
        head_dim: rows of a head's state (P).
    """

    mixer: nn.Module
    n_groups: int
    n_state: int
    n_heads: int
    head_dim: int

    @property
    def n_units(self) -> int:
        """Channels in all groups."""
        return self.n_groups * self.n_state

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """The rows of the input projection that make B or C: (n_groups, n_state, d_model)."""
        mixer: Any = self.mixer
        start = 2 * mixer.intermediate_size + (self.n_units if which == "C" else 0)
        rows = mixer.in_proj.weight[start : start + self.n_units]
        scale = getattr(mixer, "mup_vector", None)
        if scale is not None:  # Falcon-H1 multiplies the projection by constants
            rows = rows * scale.flatten()[start : start + self.n_units, None]
        return rows.view(self.n_groups, self.n_state, -1)


def find_state_sites(model: PreTrainedModel) -> list[StateSite]:
    """The Mamba-2 states of `model`, in order of execution; empty where it has none.

    Raises:
        ModelError: a mixer has the scan of Mamba-2 but not its parts.
    """
    sites = []
    for name, module in model.named_modules():
        code = sys.modules.get(type(module).__module__)
        if not (hasattr(code, SCAN) and hasattr(code, STEP) and hasattr(module, "A_log")):
            continue
        mixer: Any = module
        if missing := [part for part in (*_PARTS, *_SIZES) if not hasattr(mixer, part)]:
            raise ModelError(
                f"{name}: {type(module).__name__} scans like Mamba-2 but has no"
                f" {', '.join(missing)}; it needs an adapter in keepset/sites/state.py"
            )
        sites.append(
            StateSite(
                kind="state",
                layer=int(mixer.layer_idx),
                name=name,
                mixer=mixer,
                n_groups=mixer.n_groups,
                n_state=mixer.ssm_state_size,
                n_heads=mixer.num_heads,
                head_dim=mixer.head_dim,
            )
        )
    return sites
