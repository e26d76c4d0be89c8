from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from clean import assert_clean, legend, titles

import made_up
import made_up_state
from conftest import SIZES
from keepset.errors import KeepsetError
from keepset.report.figures import decoupling, style


def table(n_models=3, corpora=("wiki", "speeches", "docs")):
    return made_up.correlation(list(made_up.MODELS)[:n_models], corpora)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_clean_at_every_size(size):
    assert_clean(decoupling.draw(table(*size)))


def test_draws_what_the_table_says():
    correlation = table()
    ax = decoupling.draw(correlation).axes[0]
    pooled = correlation.query("impact == 'weight' and layer == -1")
    marks = [line for line in ax.get_lines() if line.get_marker() in ("o", "s", "^")]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx(pooled["spearman"].tolist())
    bars = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2][1:]
    assert np.array(bars) == pytest.approx(pooled[["ci_low", "ci_high"]].to_numpy())
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 9 * 12


def test_a_panel_per_notion_that_was_measured():
    correlation = table()
    assert [title.split("\n")[0] for title in titles(decoupling.draw(correlation))] == [
        "FFN: weight", "FFN: output", "FFN: taylor", "FFN: loss",
    ]  # fmt: skip
    two = correlation[correlation["impact"].isin(["weight", "output"])]
    figure = decoupling.draw(two)
    assert_clean(figure)
    assert len(figure.axes) == 2


def test_specimens_and_corpora_in_the_legend():
    expected = ["wiki", "speeches", "docs", "single layers", style.SPECIMEN]
    assert legend(decoupling.draw(table())) == expected


def test_unknown_correlation():
    correlation = table(1)
    correlation.loc[correlation["layer"] == -1, ["spearman", "ci_low", "ci_high"]] = np.nan
    assert_clean(decoupling.draw(correlation))


def test_nothing_to_draw():
    with pytest.raises(KeepsetError, match="figure decoupling"):
        decoupling.draw(table().iloc[:0])


def test_states_stand_beside_neurons():
    both = pd.concat([table(), made_up_state.correlation(["mamba2"])])
    figure = decoupling.draw(both)
    assert_clean(figure)
    assert [title.split("\n")[0] for title in titles(figure)][-1] == "state: energy"
    marks = [line for line in figure.axes[-1].get_lines() if line.get_marker() in ("o", "s", "^")]
    ghost = both.query("size == 'magnitude' and impact == 'ghost' and layer == -1")
    assert [line.get_xdata()[0] for line in marks] == pytest.approx(ghost["spearman"].tolist())
    taylor = [line for line in figure.axes[2].get_lines() if line.get_marker() in ("o", "s", "^")]
    assert len(taylor) == 9  # none of the state's, which has an impact of this name too
