from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, legend, titles

import made_up_state
from keepset.analyse import comparisons
from keepset.errors import KeepsetError
from keepset.report.figures import recall, style
from keepset.settings import Statistics


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    items = made_up_state.recall(["hybrid", "mamba2", "relu"], each=4)
    return comparisons.recall_table(items, Statistics(), 1 / 64)


@pytest.mark.parametrize("models", [["relu"], ["mamba2"], ["hybrid", "mamba2", "relu"]])
def test_clean_at_every_size(table, models):
    assert_clean(recall.draw(table[table["model"].isin(models)]))


def test_draws_what_the_table_says(table):
    figure = recall.draw(table)
    ax = next(ax for ax in figure.axes if ax.get_title() == "mamba2\nstate cut, 90%")
    rows = table.query("model == 'mamba2' and sparsity == 0.9 and distance == -1")
    lines = {line.get_color(): line.get_ydata() for line in ax.get_lines()}
    ghost = rows.query("score == 'ghost'").sort_values("n_facts")["accuracy"]
    assert lines[style.BLUE] == pytest.approx(ghost)
    dense = table.query("model == 'mamba2' and method == 'dense' and distance == -1")
    assert lines[style.BLACK] == pytest.approx(dense.sort_values("n_facts")["accuracy"])
    chance = next(line for line in ax.get_lines() if line.get_linestyle() == ":")
    assert chance.get_ydata()[0] == 1 / 64


def test_three_largest_sparsities(table):
    names = titles(recall.draw(table[table["model"] == "mamba2"]))
    assert [name.split("\n")[1] for name in names] == [
        "state cut, 70%", "state cut, 90%", "state cut, 95%", "state held, 95%",
    ]  # fmt: skip


def test_dense_alone(table):
    figure = recall.draw(table.query("method == 'dense' and model == 'relu'"))
    assert legend(figure) == ["dense", style.SPECIMEN]


def test_nothing_to_draw(table):
    with pytest.raises(KeepsetError, match="figure recall"):
        recall.draw(table.iloc[:0])
