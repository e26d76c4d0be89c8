"""State models of every family, and how their shapes are set."""

from __future__ import annotations

from typing import Any

from keepset.sites import families

FAMILIES = tuple(name for name, one in families.FAMILIES.items() if one.memory == "mamba2")
"""Of Mamba-2's memory."""
DELTA = (
    "olmo_hybrid",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "qwen3_next",
    "kimi_linear",
    "bailing_hybrid",
)
"""Of the delta rule's; the composite models around them hold the same mixers."""
SELECTIVE = {"mamba": 1, "falcon_mamba": 1, "jamba": 1, "zamba": 2}
"""Of Mamba-1's, and how many groups of heads they have here."""
UNCUT = {"minimax": 4, "recurrent_gemma": 1}
"""The same, of memories that cannot be cut."""
GROUP_KEYS = {"mamba2": "n_groups", "nemotron_h": "n_groups", "zamba2": "mamba_ngroups"}
GROUP_KEYS["zamba"] = "n_mamba_heads"
GROUP_KEYS |= dict.fromkeys(DELTA[:-2], "linear_num_key_heads")


def shape(family: str, groups: int = 1, n_state: int = 8) -> dict[str, Any]:
    """Overrides for `tiny_model`: groups of heads and channels per group."""
    if family in DELTA[-2:]:  # every head is a group of its own
        return {"linear_num_heads": groups, "linear_head_dim": n_state}
    if family in UNCUT:
        return {}
    if SELECTIVE.get(family) == 1:
        return {str(families.FAMILIES[family].state_size_key): n_state}
    return {
        GROUP_KEYS.get(family, "mamba_n_groups"): groups,
        str(families.FAMILIES[family].state_size_key): n_state,
    }
