"""What the tests of tested tables share."""

from __future__ import annotations

import pandas as pd

from keepset.analyse import significance
from keepset.settings import Statistics

STATISTICS = Statistics()
STATIC = {"method": "static", "score": "magnitude", "sparsity": 0.9}


def run(
    perplexity: pd.DataFrame, capability: pd.DataFrame, rounding: pd.DataFrame | None = None
) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame() if rounding is None else rounding
    return significance.test_significance(perplexity, capability, STATISTICS, runs)


def pick(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table
