"""Figures for readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset.figures import (
    capability,
    claims,
    decoupling,
    dial,
    frontier,
    scores,
    speedup,
    static_dynamic,
    style,
)

PathLike = str | Path

FIGURES: dict[str, Callable[..., Any]] = {
    "capability": capability.draw,
    "claims": claims.draw,
    "decoupling": decoupling.draw,
    "dial": dial.draw,
    "frontier": frontier.draw,
    "scores": scores.draw,
    "speedup": speedup.draw,
    "static_dynamic": static_dynamic.draw,
}


def draw(name: str, tables: Sequence[PathLike], output: PathLike) -> None:
    """Draw figure `name` from its tables; writes `output` and its siblings .svg and .pdf."""
    read = [pd.read_parquet(table) for table in tables]
    style.save(FIGURES[name](*read), Path(output).with_suffix(""))
