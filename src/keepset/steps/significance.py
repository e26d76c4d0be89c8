"""Intervals and tests over every result of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keepset.analyse import significance
from keepset.files import store
from keepset.files.store import PathLike
from keepset.run import provenance
from keepset.settings import Statistics
from keepset.steps.tables import read_tables


def test_significance(
    perplexity: Sequence[PathLike],
    capability: Sequence[PathLike],
    statistics: Mapping[str, Any],
    seed: int,
    outputs: Mapping[str, PathLike],
) -> None:
    """Test every setting against dense; `outputs` maps ratios, capability and trend to files."""
    tables = significance.test_significance(
        read_tables(perplexity),
        read_tables(capability),
        Statistics.model_validate(statistics),
        seed,
    )
    facts = {**provenance.environment(), "statistics": dict(statistics), "seed": seed}
    for name, path in outputs.items():
        store.write_table(tables[name], path, facts)
