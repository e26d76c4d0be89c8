"""Size against impact: does a unit that is often large also matter?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from keepset.analyse import stats
from keepset.rules.kinds import Kind
from keepset.settings import Statistics


def correlation_table(
    kind: Kind,
    units: pd.DataFrame,
    statistics: Statistics,
    seed: int,
    identity: Mapping[str, Any],
    ablated: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Correlate every notion of size with every notion of impact, per layer and over all layers.

    Args:
        kind: The kind of site; its `sizes` and `impacts` name the columns.
        units: One row per unit of one model and corpus; may be empty.
        statistics: Level and resamples of the intervals.
        seed: Seed of the bootstrap.
        identity: Leading columns.
        ablated: Some units with their measured `loss` change, where it was measured.

    Returns:
        The `correlation` table of docs/METHODS.md; layer -1 pools all layers.
    """
    sources = [
        (units, impact, column) for impact, column in kind.impacts.items() if column in units
    ]
    if ablated is not None:
        sources.append((ablated, "loss", "loss"))
    tables = []
    for size in kind.sizes:
        for table, impact, column in sources:
            coefficients = stats.correlate(
                table[size].to_numpy(),
                table[column].to_numpy(),
                table["layer"].to_numpy(),
                confidence=statistics.confidence,
                resamples=min(statistics.resamples, 1999),
                seed=seed,
            )
            columns = {**identity, "site": kind.name, "size": size, "impact": impact}
            for place, (name, value) in enumerate(columns.items()):
                coefficients.insert(place, name, value)
            tables.append(coefficients)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
