"""Intervals and tests over every result of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from keepset.analyse import significance
from keepset.analyse.correlation import correlation_table
from keepset.files import store
from keepset.files.store import PathLike
from keepset.rules.kinds import KINDS
from keepset.run import provenance
from keepset.settings import Statistics
from keepset.steps.tables import read_tables


def test_significance(
    perplexity: Sequence[PathLike],
    capability: Sequence[PathLike],
    rounding: Sequence[PathLike],
    statistics: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Test every setting against dense; `outputs` maps ratios, capability and trend to files.

    `rounding` are the tables of runs that differ in the last bit, where there are dynamic rules.
    """
    tables = significance.test_significance(
        read_tables(perplexity),
        read_tables(capability),
        Statistics.model_validate(statistics),
        read_tables(rounding),
    )
    facts = {**provenance.environment(), "statistics": dict(statistics)}
    for name, path in outputs.items():
        store.write_table(tables[name], path, facts)


def correlate_state(
    channels: PathLike,
    statistics: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Correlate the size of channels with what they do."""
    confidence = Statistics.model_validate(statistics).confidence
    units = pd.read_parquet(channels)
    parts = [part for _, part in units.groupby("left_out")] if len(units) else []
    table = correlation_table(KINDS["state"], parts, confidence, identity)
    store.write_table(table, output, store.read_json(store.sidecar(channels)))
