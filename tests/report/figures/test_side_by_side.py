from __future__ import annotations

import pytest
from clean import assert_clean, titles

from keepset.analyse import comparisons
from keepset.errors import KeepsetError
from keepset.report.figures import side_by_side, style


@pytest.fixture
def cells(state_ratios):
    return comparisons.side_by_side(state_ratios)


@pytest.mark.parametrize("models", [1, 2])
def test_clean_at_every_size(cells, models):
    names = list(cells["model"].unique())[:models]
    figure = side_by_side.draw(cells[cells["model"].isin(names)])
    assert_clean(figure)
    assert len(titles(figure)) == 2 * models


def test_draws_what_the_table_says(cells):
    figure = side_by_side.draw(cells)
    ax = figure.axes[titles(figure).index("hybrid, wiki: 90% left out")]
    rows = cells.query("model == 'hybrid' and sparsity == 0.9 and by == 'impact'")
    line = next(line for line in ax.get_lines() if line.get_color() == style.BLUE)
    drawn = dict(zip(map(round, line.get_xdata()), line.get_ydata(), strict=True))
    for at, part, access, method in (
        (0, "memory", "both", "static"),
        (1, "memory", "read", "dynamic"),
        (2, "memory", "write", "dynamic"),
        (3, "scratch", "none", "static"),
        (4, "scratch", "none", "dynamic"),
    ):
        keys = (rows["part"] == part) & (rows["access"] == access) & (rows["method"] == method)
        assert drawn[at] == rows.loc[keys, "ratio"].item()
    assert line.get_markerfacecolor() == "white"


def test_nothing_to_draw(cells):
    with pytest.raises(KeepsetError, match="figure side_by_side"):
        side_by_side.draw(cells.iloc[:0])
