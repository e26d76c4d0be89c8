"""State channels: the recurrent states of Mamba-2 mixers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keepset.calibrate.sets import load_sets
from keepset.hold.cut import prune_states as cut
from keepset.hold.state import hold_static, hold_windows, lead_in_scores
from keepset.sites.state import find_state_sites as find

__all__ = [
    "cut",
    "find",
    "hold_static",
    "hold_windows",
    "lead_in_scores",
    "load_sets",
    "sets_identity",
]


def sets_identity(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep sets of channels depend on the settings (`static`) and seeds they were chosen for."""
    seeds = list(settings["seeds"])
    return {**identity, "gradients": False, "static": settings["static"], "seeds": seeds}
