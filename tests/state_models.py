"""State models of every family, and how their shapes are set."""

from __future__ import annotations

from typing import Any

from keepset.hold.cut import STATE_SIZE_KEYS

FAMILIES = tuple(STATE_SIZE_KEYS)
GROUP_KEYS = {"mamba2": "n_groups", "nemotron_h": "n_groups", "zamba2": "mamba_ngroups"}


def shape(family: str, groups: int = 1, n_state: int = 8) -> dict[str, Any]:
    """Overrides for `tiny_model`: groups of heads and channels per group."""
    return {
        GROUP_KEYS.get(family, "mamba_n_groups"): groups,
        STATE_SIZE_KEYS[family]: n_state,
    }
