from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from keepset.report.figures import layout


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


def test_single_panels_share_a_row():
    keys = [*((row, "x") for row in "abcd"), ("e", "x"), ("e", "y"), ("e", "z")]
    found = place(keys)
    assert [found[row, "x"] for row in "abcd"] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [found["e", column] for column in "xyz"] == [(2, 0), (2, 1), (2, 2)]


def test_only_panels_of_one_row_share_their_y_axis():
    _, axes = layout.panels([("a", "x"), ("b", "x"), ("b", "y")])
    axes["b", "x"].set_ylim(0, 5)
    assert axes["b", "y"].get_ylim() == (0, 5)
    assert axes["a", "x"].get_ylim() == (0, 1)
