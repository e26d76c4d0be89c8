"""State models of every family, and how their shapes are set."""

from __future__ import annotations

from typing import Any

from keepset.sites import families

FAMILIES = tuple(name for name, one in families.FAMILIES.items() if one.memory == "mamba2")
"""Of Mamba-2's memory."""
DELTA = ("olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "kimi_linear")
"""Of the delta rule's; the composite models around them hold the same mixers."""
GROUP_KEYS = {"mamba2": "n_groups", "nemotron_h": "n_groups", "zamba2": "mamba_ngroups"}
GROUP_KEYS |= dict.fromkeys(DELTA[:-1], "linear_num_key_heads")


def shape(family: str, groups: int = 1, n_state: int = 8) -> dict[str, Any]:
    """Overrides for `tiny_model`: groups of heads and channels per group."""
    if family == "kimi_linear":  # every head is a group of its own
        return {"linear_num_heads": groups, "linear_head_dim": n_state}
    return {
        GROUP_KEYS.get(family, "mamba_n_groups"): groups,
        str(families.FAMILIES[family].state_size_key): n_state,
    }
