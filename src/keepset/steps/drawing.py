"""Figures for readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import (
    capability,
    claims,
    decoupling,
    dial,
    frontier,
    loss_curve,
    memory_dial,
    phantom,
    recall,
    scores,
    side_by_side,
    speedup,
    state_length,
    state_sweep,
    static_dynamic,
    style,
)

PathLike = str | Path


class _Drawn(NamedTuple):
    draw: Callable[..., Figure]
    absent: str
    """What the page says where the models turn out to have nothing to draw."""
    site: str | None = None
    """The kind of site of the rows that are drawn, where the table holds both."""


_FFN = "No model of this study has feed-forward neurons that were measured."
_STATE = "No model of this study has a recurrent state that was measured."

FIGURES = {
    "capability": _Drawn(capability.draw, _FFN, "ffn"),
    "claims": _Drawn(claims.draw, "No claim was judged."),
    "decoupling": _Drawn(decoupling.draw, "No model of this study has units to correlate."),
    "dial": _Drawn(dial.draw, _FFN, "ffn"),
    "frontier": _Drawn(frontier.draw, "Nothing was timed."),
    "memory_dial": _Drawn(memory_dial.draw, _STATE, "state"),
    "phantom": _Drawn(phantom.draw, _STATE),
    "recall": _Drawn(recall.draw, "No recall task was run."),
    "scores": _Drawn(scores.draw, _FFN, "ffn"),
    "side_by_side": _Drawn(side_by_side.draw, "No model of this study has both kinds of site."),
    "speedup": _Drawn(speedup.draw, "Nothing was timed."),
    "state_length": _Drawn(state_length.draw, _STATE),
    "state_sweep": _Drawn(state_sweep.draw, _STATE, "state"),
    "static_dynamic": _Drawn(static_dynamic.draw, _FFN, "ffn"),
}


def draw(name: str, tables: Sequence[PathLike], output: PathLike) -> None:
    """Draw figure `name` from its tables; writes `output` and its siblings .svg and .pdf.

    Whether a model has sites of a kind is known only when it is loaded: where none has, the page
    says so, and the study goes on.
    """
    drawn = FIGURES[name]
    found = [pd.read_parquet(path) for path in tables]
    figure = style.note(drawn.absent) if _absent(found[0], drawn.site) else drawn.draw(*found)
    style.save(figure, Path(output).with_suffix(""))


def draw_losses(tables: Sequence[PathLike], output: PathLike) -> None:
    """Draw the loss curves of all specimens that there are."""
    found = pd.concat([pd.read_parquet(path) for path in tables], ignore_index=True)
    style.save(loss_curve.draw(found), Path(output).with_suffix(""))


def _absent(table: pd.DataFrame, site: str | None) -> bool:
    return not len(table) or (site is not None and not (table["site"] == site).any())
