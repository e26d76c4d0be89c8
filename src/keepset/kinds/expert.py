"""Routed experts: which of them a token may be routed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keepset.calibrate.experts import rank_file as load_sets  # noqa: F401
from keepset.hold.cut_experts import prune_experts as cut  # noqa: F401
from keepset.hold.experts import hold_static, hold_windows, lead_in_scores  # noqa: F401
from keepset.sites.experts import find_expert_sites as find  # noqa: F401


def sets_owner(owner: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of experts depend on model, text and dtype alone."""
    del settings
    return dict(owner)
