from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from clean import assert_clean, legend, panel, titles
from matplotlib.colors import same_color, to_rgba

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
    ax = panel(decoupling.draw(correlation), "FFN: weight\n")
    pooled = correlation.query("impact == 'weight' and layer == -1")
    marks = [line for line in ax.get_lines() if line.get_marker() in ("o", "s", "^")]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx(pooled["spearman"].tolist())
    bars = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2][1:]
    assert np.array(bars) == pytest.approx(pooled[["ci_low", "ci_high"]].to_numpy())
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 9 * 12


def notions(figure):
    """The titles of the panels above: a notion of impact, then its formula below it."""
    return [title.split("\n")[0] for title in titles(figure) if "\n" in title]


def test_a_panel_per_notion_that_was_measured():
    correlation = table()
    names = ["FFN: weight", "FFN: output", "FFN: taylor", "FFN: loss"]
    assert notions(decoupling.draw(correlation)) == names
    two = correlation[correlation["impact"].isin(["weight", "output"])]
    figure = decoupling.draw(two)
    assert_clean(figure)
    assert notions(figure) == names[:2]


def test_the_profile_of_a_model_shows_every_layer_and_how_sure_it_is():
    correlation = table()
    figure = decoupling.draw(correlation)
    ax = panel(figure, "smollm2-135m, FFN: weight")
    rows = correlation.query(
        "model == 'smollm2-135m' and impact == 'weight' and corpus == 'docs' and layer >= 0"
    )
    band_colour = to_rgba(style.GREEN, alpha=0.25)
    line = next(line for line in ax.get_lines() if line.get_color() == style.GREEN)
    assert line.get_xdata() == pytest.approx(rows["layer"])
    assert line.get_ydata() == pytest.approx(rows["spearman"])
    band = next(band for band in ax.collections if same_color(band.get_facecolor(), band_colour))
    heights = band.get_paths()[0].vertices[:, 1]
    assert {*rows["ci_low"], *rows["ci_high"]} <= set(heights)


def test_text_that_was_left_out_to_resample_is_not_drawn():
    whole = table()
    parts = [whole, whole.assign(left_out=0, spearman=0.9), whole.assign(left_out=1, spearman=-0.9)]
    marks = [
        [line.get_ydata() for ax in decoupling.draw(correlation).axes for line in ax.get_lines()]
        for correlation in (whole, pd.concat(parts))
    ]
    assert len(marks[0]) == len(marks[1])
    assert all(np.array_equal(one, other) for one, other in zip(*marks, strict=True))


def test_a_single_layer_has_no_profile():
    figure = decoupling.draw(table().query("layer <= 0"))
    assert_clean(figure)
    assert not [title for title in titles(figure) if "\n" not in title]


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
    energy, taylor = (
        [line for line in ax.get_lines() if line.get_marker() in ("o", "s", "^")]
        for ax in (panel(figure, "state: energy\n"), panel(figure, "FFN: taylor\n"))
    )
    ghost = both.query("size == 'magnitude' and impact == 'ghost' and layer == -1")
    assert [line.get_xdata()[0] for line in energy] == pytest.approx(ghost["spearman"].tolist())
    assert len(taylor) == 9  # none of the state's, which has an impact of this name too
    assert "mamba2, state: energy" in titles(figure)
