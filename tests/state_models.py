"""State models of every family, and how their shapes are set."""

from __future__ import annotations

from typing import Any

from keepset.sites import families

FAMILIES = tuple(name for name, one in families.FAMILIES.items() if one.state_size_key)
GROUP_KEYS = {"mamba2": "n_groups", "nemotron_h": "n_groups", "zamba2": "mamba_ngroups"}


def shape(family: str, groups: int = 1, n_state: int = 8) -> dict[str, Any]:
    """Overrides for `tiny_model`: groups of heads and channels per group."""
    return {
        GROUP_KEYS.get(family, "mamba_n_groups"): groups,
        str(families.FAMILIES[family].state_size_key): n_state,
    }
