"""Figures for readers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from keepset.figures import capability, claims, decoupling, dial, scores, static_dynamic, style

PathLike = str | Path

FIGURES = {
    "capability": capability.draw,
    "claims": claims.draw,
    "decoupling": decoupling.draw,
    "dial": dial.draw,
    "scores": scores.draw,
    "static_dynamic": static_dynamic.draw,
}


def draw(name: str, table: PathLike, output: PathLike) -> None:
    """Draw figure `name` from its table; writes `output` and its siblings .svg and .pdf."""
    style.save(FIGURES[name](pd.read_parquet(table)), Path(output).with_suffix(""))
