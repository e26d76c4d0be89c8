"""Checks of what a reader sees: every text inside the page, none upon another."""

from __future__ import annotations

from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.axes._base import _AxesBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from keepset.report.figures import style


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """The visible texts and where they stand, in pixels."""
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(canvas.get_renderer())
            if _drawn(text, figure):
                found.append((text.get_text(), box))
    return found


def _drawn(text: Text, figure: Figure) -> bool:
    """Tick labels outside the limits of their axis are there but are not drawn."""
    for ax in figure.findobj(_AxesBase):
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [*axis.majorTicks, *axis.minorTicks]
            if any(text in (tick.label1, tick.label2) for tick in ticks):
                drawn = axis._update_ticks()
                return any(text in (tick.label1, tick.label2) for tick in drawn)
    return True


def assert_clean(figure: Figure) -> None:
    found = texts(figure)
    width, height = figure.get_size_inches() * 200
    for text, box in found:
        assert box.x0 >= -1, f"{text!r} leaves the page on the left"
        assert box.x1 <= width + 1, f"{text!r} leaves the page on the right"
        assert box.y0 >= -1, f"{text!r} leaves the page below"
        assert box.y1 <= height + 1, f"{text!r} leaves the page above"
    for (one, a), (other, b) in combinations(found, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), f"{one!r} lies upon {other!r}"


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_label() != style.FREE]


def panel(figure: Figure, title: str) -> Axes:
    """The first panel whose title begins so."""
    return next(ax for ax in figure.axes if ax.get_title().startswith(title))


def legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    return [text.get_text() for one in legends for text in one.get_texts()]
