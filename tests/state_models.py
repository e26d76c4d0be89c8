"""State models of every family, and how their shapes are set."""

from __future__ import annotations

from typing import Any

from keepset.sites import families

FAMILIES = tuple(name for name, one in families.FAMILIES.items() if one.state_size_key)
"""Those whose states can be cut."""
GROUP_KEYS = {
    "mamba2": "n_groups",
    "nemotron_h": "n_groups",
    "zamba": "n_mamba_heads",
    "zamba2": "mamba_ngroups",
}
ONE_GROUP = ("falcon_mamba", "jamba", "mamba")
CASES = tuple((name, n) for name in FAMILIES for n in (1, 2) if n == 1 or name not in ONE_GROUP)
"""(family, groups)."""
UNCUT = (("minimax", 4), ("recurrent_gemma", 1))
"""The same, of families whose states cannot be cut."""


def shape(family: str, groups: int = 1, n_state: int = 8) -> dict[str, Any]:
    """Overrides for `tiny_model`: groups of heads and channels per group."""
    if family in dict(UNCUT):
        return {}
    sizes: dict[str, Any] = {str(families.FAMILIES[family].state_size_key): n_state}
    if family not in ONE_GROUP:
        sizes[GROUP_KEYS.get(family, "mamba_n_groups")] = groups
    return sizes
