"""Settings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keepset.analyse import comparisons, quadrants
from keepset.files import store
from keepset.files.store import PathLike
from keepset.run import provenance
from keepset.settings import Statistics
from keepset.steps.tables import read_tables
from keepset.text.recall import CHANCE


def compare_settings(
    inputs: Mapping[str, Sequence[PathLike]],
    statistics: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Recall by facts, state scores in pairs, memory beside scratch, lengths.

    `inputs` maps perplexity, capability, ratios and lengths to tables; `outputs` maps recall,
    state_pairs, side_by_side and lengths to files.
    """
    measured = {name: read_tables(paths) for name, paths in inputs.items()}
    perplexity, capability = measured["perplexity"], measured["capability"]
    settings = Statistics.model_validate(statistics)
    compared = {
        "recall": comparisons.recall_table(capability, settings, CHANCE),
        "state_pairs": comparisons.state_pairs(perplexity, capability, settings),
        "side_by_side": comparisons.side_by_side(measured["ratios"]),
        "lengths": comparisons.length_ratios(measured["lengths"], settings),
    }
    source = {**provenance.environment(), "statistics": dict(statistics)}
    for name, path in outputs.items():
        store.write_table(compared[name], path, source)


def sort_channels(inputs: Sequence[PathLike], outputs: Mapping[str, PathLike]) -> None:
    """Join the channels of all models; outputs: channels, with their quadrants, and quadrants."""
    sidecars = {str(path): store.read_json(store.sidecar(path)) for path in inputs}
    table = quadrants.with_quadrants(read_tables(inputs))
    store.write_table(table, outputs["channels"], sidecars)
    store.write_table(quadrants.shares(table), outputs["quadrants"], sidecars)
