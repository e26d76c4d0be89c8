"""Intervals and tests over every result of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset.analyse import significance
from keepset.files import store
from keepset.run import provenance
from keepset.settings import Statistics

PathLike = str | Path


def test_significance(
    perplexity: Sequence[PathLike],
    capability: Sequence[PathLike],
    statistics: Mapping[str, Any],
    seed: int,
    outputs: Mapping[str, PathLike],
) -> None:
    """Test every setting against dense; `outputs` maps ratios, capability and trend to files."""
    tables = significance.test_significance(
        pd.concat([pd.read_parquet(path) for path in perplexity], ignore_index=True),
        pd.concat([pd.read_parquet(path) for path in capability], ignore_index=True)
        if capability
        else pd.DataFrame(),
        Statistics.model_validate(statistics),
        seed,
    )
    facts = {**provenance.environment(), "statistics": dict(statistics), "seed": seed}
    for name, path in outputs.items():
        store.write_table(tables[name], path, facts)
