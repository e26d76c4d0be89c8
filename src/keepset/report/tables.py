"""Result tables as files: CSV with every digit for machines, LaTeX with intervals for readers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from keepset.errors import KeepsetError
from keepset.files.store import replacing
from keepset.report.latex import longtable
from keepset.report.layouts import LAYOUTS
from keepset.report.wording import percent


def write_tables(
    tables: dict[str, pd.DataFrame], folder: str | Path, confidence: float | None = None
) -> list[Path]:
    """Write every table that the given ones hold, each as .csv and .tex.

    Args:
        tables: Any of `ratios`, `capability` and `trend` (what `analyse.significance` returns),
            `correlation`, and `recall`, `state_pairs`, `side_by_side` and `lengths` (what
            keepset.analyse.comparisons returns). A table without rows gives files with a head only.
        folder: Where the files go.
        confidence: Level of the intervals, for the captions.

    Returns:
        The paths written.

    Raises:
        KeepsetError: a table of another name, or one that lacks a column.
    """
    known = {layout.source for layout in LAYOUTS.values()}
    if unknown := set(tables) - known:
        raise KeepsetError(
            f"tables: cannot write {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    level = "" if confidence is None else percent(confidence).replace("%", r"\%") + " "
    paths = []
    for name, layout in LAYOUTS.items():
        if layout.source not in tables:
            continue
        table = tables[layout.source]
        try:
            rows = layout.select(table) if len(table) else table
            head, cells = layout.cells(rows) if len(rows) else ([], [])
        except KeyError as error:
            raise KeepsetError(f"table {layout.source}: missing column {error}") from None
        text = longtable(head, cells, layout.caption.format(level=level), f"tab:{name}")
        texts = {"csv": rows.to_csv(index=False, lineterminator="\n"), "tex": text}
        for ending, text in texts.items():
            paths.append(Path(folder) / f"{name}.{ending}")
            with replacing(paths[-1]) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
    return paths
