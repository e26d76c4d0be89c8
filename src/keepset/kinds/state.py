"""State channels: the recurrent states of Mamba-2 mixers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keepset.calibrate.sets import load_sets  # noqa: F401
from keepset.hold.cut import prune_states as cut  # noqa: F401
from keepset.hold.state import hold_static, hold_windows, lead_in_scores  # noqa: F401
from keepset.sites.state import find_state_sites as find  # noqa: F401


def sets_owner(owner: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep sets of channels depend on the settings (`static`) and seeds they were chosen for."""
    seeds = list(settings["seeds"])
    return {**owner, "gradients": False, "static": settings["static"], "seeds": seeds}
