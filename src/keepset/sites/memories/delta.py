"""Mixers of the gated delta rule (Qwen3-Next, Qwen3.5, OLMo-Hybrid), and of KDA (Kimi-Linear).

They bind the functions of the recurrence in the module of the family, and name the parts of a mixer
nearly alike.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites.state import StateSite

GATED = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
"""The functions of the rule with one decay for all channels of a head."""
FUNCTIONS = (GATED, ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"))
"""Names of the functions that run a whole passage, and a single cached step."""


@dataclass(frozen=True, eq=False)
class DeltaSite(StateSite):
    """The state of a gated delta rule: a group's value heads share one key head."""

    def projection(self, which: Literal["B", "C"]) -> Tensor:
        """See `StateSite`."""
        (linear, rows), *_ = _rows(self, "k" if which == "B" else "q")
        return linear.weight[rows].view(self.n_groups, self.n_state, -1)


def recognise(name: str, module: nn.Module) -> StateSite | None:
    """See `keepset.sites.memories.Memory`."""
    code = sys.modules.get(type(module).__module__)
    bound = any(all(hasattr(code, function) for function in pair) for pair in FUNCTIONS)
    if not (bound and hasattr(module, "conv1d") and hasattr(module, "layer_idx")):
        return None
    mixer: Any = module
    if hasattr(mixer, "qkv_dim"):  # one size for keys and values
        sizes = (mixer.num_heads, mixer.head_dim, mixer.num_heads, mixer.head_dim)
    elif hasattr(mixer, "head_k_dim"):
        sizes = (mixer.num_k_heads, mixer.head_k_dim, mixer.num_v_heads, mixer.head_v_dim)
    else:
        raise ModelError(
            f"{name}: {type(module).__name__} runs a delta rule but has no head_k_dim; it needs an"
            " adapter in keepset/sites/memories/delta.py"
        )
    n_groups, n_state, n_heads, head_dim = sizes
    site = DeltaSite(
        kind="state",
        layer=int(mixer.layer_idx),
        name=name,
        memory="delta",
        mixer=mixer,
        n_groups=n_groups,
        n_state=n_state,
        n_heads=n_heads,
        head_dim=head_dim,
    )
    key_and_query_rows(site)  # known, or refused here
    return site


def key_and_query_rows(site: StateSite) -> list[tuple[Any, Tensor]]:
    """(linear map, its rows that make k or q), group by group and channel by channel."""
    return [*_rows(site, "q"), *_rows(site, "k")]


def _rows(site: StateSite, which: Literal["q", "k"]) -> list[tuple[Any, Tensor]]:
    mixer: Any = site.mixer
    every = torch.arange(site.n_units)
    if hasattr(mixer, f"{which}_proj"):
        return [(getattr(mixer, f"{which}_proj"), every)]
    if hasattr(mixer, "in_proj_qkv"):  # q, k, v
        return [(mixer.in_proj_qkv, every + (site.n_units if which == "k" else 0))]
    if hasattr(mixer, "in_proj_qkvz"):  # q, k, v and z of one key head after the other
        values = 2 * site.head_dim * (site.n_heads // site.n_groups)
        starts = torch.arange(site.n_groups)[:, None] * (2 * site.n_state + values)
        first = site.n_state if which == "k" else 0
        return [(mixer.in_proj_qkvz, (starts + first + torch.arange(site.n_state)).flatten())]
    raise ModelError(
        f"{site.name}: which rows of {type(mixer).__name__} make keys and queries is not known; it"
        " needs an adapter in keepset/sites/memories/delta.py"
    )
