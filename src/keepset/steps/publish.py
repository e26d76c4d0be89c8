"""Tables and figures for readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from keepset.report import tables

PathLike = str | Path


def write_tables(inputs: Mapping[str, PathLike], folder: PathLike, confidence: float) -> None:
    """Write every table as CSV and LaTeX; `inputs` maps ratios, capability, ... to files."""
    found = {name: pd.read_parquet(path) for name, path in inputs.items()}
    tables.write_tables(found, folder, confidence)
