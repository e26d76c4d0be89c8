"""Tables and figures for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from keepset.files.store import PathLike
from keepset.report import tables


def write_tables(
    inputs: Mapping[str, PathLike], outputs: Mapping[str, Sequence[PathLike]], confidence: float
) -> None:
    """Write every table as CSV and LaTeX, side by side; `inputs` maps ratios, ... to files."""
    sources = {name: pd.read_parquet(path) for name, path in inputs.items()}
    tables.write_tables(sources, Path(outputs["csv"][0]).parent, confidence)
