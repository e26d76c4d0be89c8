from __future__ import annotations

import pytest
from clean import assert_clean, legend, panel, titles

from keepset.errors import KeepsetError
from keepset.report.figures import score_lines, scores, state_sweep, static_dynamic, style
from keepset.rules.scores import CHANNEL_SCORES, static_names


@pytest.mark.parametrize("models", [1, 3])
def test_clean_at_every_size(state_ratios, models):
    names = list(state_ratios["model"].unique())[:models]
    figure = state_sweep.draw(state_ratios[state_ratios["model"].isin(names)])
    assert_clean(figure)
    pretrained_first = sorted(names, key=lambda name: name in ("mamba2", "hybrid"))
    assert titles(figure) == [f"{name}, wiki" for name in pretrained_first]


def test_draws_what_the_table_says(state_ratios):
    ax = panel(state_sweep.draw(state_ratios), "mamba2, wiki")
    rows = state_ratios.query("model == 'mamba2' and method == 'static' and score == 'ghost'")
    ghost = next(line for line in ax.get_lines() if line.get_color() == style.BLUE)
    assert ghost.get_ydata() == pytest.approx(rows.sort_values("sparsity")["ratio"])
    assert ghost.get_markerfacecolor() == "white"
    random = state_ratios.query("model == 'mamba2' and method == 'static' and score == 'random'")
    (band,) = [c for c in ax.collections if c.get_alpha() == 0.25]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(random["ratio_min"].min())
    assert heights.max() == pytest.approx(random["ratio_max"].max())


def test_every_score_has_a_name(state_ratios):
    static = static_names(CHANNEL_SCORES)
    names = [name for name in score_lines.looks("state") if name in static]
    shown = legend(state_sweep.draw(state_ratios))[:-1]
    assert [label.split(" (")[0] for label in shown] == names


def test_figures_of_neurons_and_of_states_do_not_mix(state_ratios):
    names = titles(static_dynamic.draw(state_ratios)) + titles(scores.draw(state_ratios))
    assert not any(name.startswith("mamba2") for name in names)
    with pytest.raises(KeepsetError, match="figure state_sweep"):
        state_sweep.draw(state_ratios[state_ratios["site"] == "ffn"])
