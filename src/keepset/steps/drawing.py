"""Figures for readers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from keepset.files.store import PathLike
from keepset.report.figures import style


def draw(
    figure: str, absent: str, site: str | None, inputs: Sequence[PathLike], output: PathLike
) -> None:
    """Draw a figure from its tables; writes `output` and its siblings .svg and .pdf.

    Whether a model has sites of a kind is known only when it is loaded: where none has, the page
    says so, and the study goes on.

    Args:
        figure: Its module in `keepset.report.figures`.
        absent: What the page says where there is nothing to draw.
        site: The kind of site of the rows that are drawn; None where all are.
        inputs: The tables.
        output: The figure as PNG.
    """
    tables = [pd.read_parquet(path) for path in inputs]
    module = importlib.import_module(f"keepset.report.figures.{figure}")
    page = style.note(absent) if _is_empty(tables[0], site) else module.draw(*tables)
    style.save(page, Path(output).with_suffix(""))


def _is_empty(table: pd.DataFrame, site: str | None) -> bool:
    return not len(table) or (site is not None and not (table["site"] == site).any())
