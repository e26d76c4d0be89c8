from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, legend, titles

import made_up
from keepset.errors import KeepsetError
from keepset.report.figures import frontier


def test_clean_at_every_size(ratios):
    kernels = made_up.kernels(ratios["model"].unique())
    assert_clean(frontier.draw(kernels, ratios))


def test_joins_time_and_perplexity_of_the_same_rule(study):
    kernels = made_up.kernels()
    figure = frontier.draw(kernels, study)
    ax = figure.axes[titles(figure).index("smollm2-135m, docs")]
    oracle = next(line for line in ax.get_lines() if line.get_linestyle() == "-")
    causal = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    keys = ["method", "choice", "window"]
    where = "model == 'smollm2-135m' and sparsity == 0.9"
    speed = kernels.query(f"{where} and level == 'model'").set_index(keys)["speedup_p50"]
    ratio = study.query(f"{where} and corpus == 'docs'").set_index(keys)["ratio"]
    windows = ["1", "4", "16", "64"]
    of_oracle = [("dynamic" if w == "1" else "windowed", "oracle", w) for w in windows]
    of_causal = [("windowed", "causal", w) for w in windows]
    for line, cells in ((oracle, of_oracle), (causal, of_causal)):
        assert line.get_xdata() == pytest.approx([speed[cell] for cell in cells])
        assert line.get_ydata() == pytest.approx([ratio[cell] for cell in cells])


def test_only_the_sparsity_of_the_windows(study):
    table = frontier.joined(made_up.kernels(sparsity=0.9), study)
    assert set(table["sparsity"]) == {0.9}
    assert set(table["method"]) == {"dynamic", "static", "windowed"}


def test_the_legend_tells_windows_and_choices(study):
    found = legend(frontier.draw(made_up.kernels(), study))
    assert {"W = 1", "W = 4", "W = 16", "W = 64", "static"} <= set(found)


def test_nothing_in_common(study):
    with pytest.raises(KeepsetError, match="figure frontier"):
        frontier.draw(made_up.kernels(sparsity=0.3), study)


def test_rules_on_states_are_not_taken_for_rules_on_neurons(study):
    kernels = made_up.kernels()
    with_states = pd.concat([study, study.assign(site="state", ratio=9.0)])
    assert len(frontier.joined(kernels, with_states)) == len(frontier.joined(kernels, study))
