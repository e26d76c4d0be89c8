"""Find the recurrent-state sites of a causal language model.

What differs between kinds of memory (Mamba-2, the gated delta rule, ...) is in
`keepset.sites.memories`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.errors import ModelError
from keepset.sites import AnySite, is_plain

SCAN = "mamba2_chunk_scan"
STEP = "mamba2_selective_state_update"
"""Names of the functions that a module of Mamba-2 mixers binds."""


@dataclass(frozen=True, eq=False)
class StateSite(AnySite):
    """The recurrent state of one mixer.

    A unit is a state channel: unit `g * n_state + n` is channel n of group g. A group's heads
    share what is written to a channel and read of it (in Mamba-2 B and C, in a delta rule k and
    q), so a channel is one column of the state of each of them.

    Attributes:
        memory: the kind of memory, one of `keepset.sites.memories.MEMORIES`.
        mixer: the mixer.
        n_groups: groups of heads that share B and C.
        n_state: channels per group (N).
        n_heads: heads in all.
        head_dim: rows of a head's state (P).
    """

    memory: str
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
        """The weights that make what is written (B) or read (C): (n_groups, n_state, d_model)."""
        raise TypeError(f"{type(self).__name__} does not say what makes {which}")


def find_state_sites(model: PreTrainedModel) -> list[StateSite]:
    """The states of `model`, in order of execution; empty where it has none that is known.

    Raises:
        ModelError: a mixer is of a known kind but lacks a part of it, or is quantised.
    """
    from keepset.sites.memories import memories  # they are made of what is above

    kinds = memories()
    sites = []
    for name, module in model.named_modules():
        recognised = (kind.recognise(name, module) for kind in kinds)
        sites += [site for site in recognised if site is not None][:1]
    for site in sites:
        for part, weight in site.mixer.named_parameters():
            if not is_plain(weight):
                raise ModelError(
                    f"{site.name}: {part} is quantised ({weight.dtype}); load the model"
                    " dequantised, in float32, bfloat16 or float16"
                )
    return sites
