from __future__ import annotations

import clean
import pandas as pd
import pytest
from matplotlib.figure import Figure

from keepset.report.figures import layout, style


@pytest.mark.parametrize("high", [1.0, 1.004, 1.2, 3.9, 30.0, 7e3, 4e6])
def test_ratio_axes_can_be_read_at_any_range(high):
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [1.0, high])
    layout.ratio_axes([ax])
    low, top = ax.get_ylim()
    shown = [tick for tick in ax.get_yticks() if low <= tick <= top]
    assert 2 <= len(shown) <= 8
    assert len({layout._plain(tick, 0) for tick in shown}) == len(shown)


def place(keys):
    """(row, column) on the page of every panel."""
    _, axes = layout.panels(keys)
    spec = {key: ax.get_subplotspec() for key, ax in axes.items()}
    return {key: (own.rowspan.start, own.colspan.start) for key, own in spec.items()}


def test_a_whole_grid_of_panels_keeps_its_shape():
    keys = [(row, column) for row in "ab" for column in "xy"]
    assert place(keys) == {
        ("a", "x"): (0, 0),
        ("a", "y"): (0, 1),
        ("b", "x"): (1, 0),
        ("b", "y"): (1, 1),
    }


def test_panels_of_models_with_unlike_many_corpora_leave_no_hole():
    keys = [("a", "x"), ("a", "y"), *((row, "x") for row in "bcd"), ("e", "x"), ("e", "y")]
    assert list(place(keys).values()) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_the_legend_stands_in_what_is_left_of_the_page():
    figure, axes = layout.panels([(row, "x") for row in "abcde"])
    handles = [style.handle(f"{n}% left out", style.BLUE) for n in (50, 90)]
    style.legend(figure, handles, pd.DataFrame({"origin": ["pretrained"]}))
    assert not figure.legends
    (free,) = [ax for ax in figure.axes if ax not in axes.values()]
    assert clean.legend(figure) == ["50% left out", "90% left out"]
    assert free.get_subplotspec().rowspan.start == 1
    assert free.get_subplotspec().colspan.start == 2


def test_a_legend_that_is_too_long_stands_above():
    figure, _ = layout.panels([(row, "x") for row in "abcde"])
    handles = [style.handle(f"a rather long name {n}", style.BLUE) for n in range(30)]
    style.legend(figure, handles, pd.DataFrame({"origin": ["pretrained"]}))
    assert len(figure.legends) == 1


def test_a_row_that_goes_on_below_is_labelled_there_too():
    _, axes = layout.panels([("a", "x"), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "x")])
    labelled = {key: ax.yaxis.get_tick_params()["labelleft"] for key, ax in axes.items()}
    assert labelled == {
        ("a", "x"): True,
        ("b", "x"): True,
        ("b", "y"): False,
        ("b", "z"): True,
        ("c", "x"): True,
    }


def test_only_panels_of_one_row_share_their_y_axis():
    _, axes = layout.panels([("a", "x"), ("b", "x"), ("b", "y")])
    axes["b", "x"].set_ylim(0, 5)
    assert axes["b", "y"].get_ylim() == (0, 5)
    assert axes["a", "x"].get_ylim() == (0, 1)
