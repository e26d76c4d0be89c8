from __future__ import annotations

import numpy as np
import pytest
from clean import assert_clean, legend, panel, titles

from keepset.errors import KeepsetError
from keepset.report.figures import static_dynamic, style


def test_clean_at_every_size(ratios):
    figure = static_dynamic.draw(ratios)
    assert_clean(figure)
    assert len(titles(figure)) == len(ratios[["model", "corpus"]].drop_duplicates())


def test_draws_what_the_table_says(study):
    figure = static_dynamic.draw(study)
    ax = next(ax for ax in figure.axes if ax.get_title() == "smollm2-135m, docs")
    cell = study.query(
        "model == 'smollm2-135m' and corpus == 'docs' and method == 'static'"
    ).sort_values("sparsity")
    line = next(line for line in ax.get_lines() if line.get_color() == style.VERMILION)
    assert line.get_ydata() == pytest.approx(cell["ratio"])
    arms = np.array([segment[:, 1] for segment in ax.collections[0].get_segments()])
    assert arms == pytest.approx(cell[["ci_low", "ci_high"]].to_numpy())
    assert ax.get_yscale() == "log"
    assert "token perplexity" in figure.get_supylabel()


def test_specimens_are_hollow_and_named(study):
    figure = static_dynamic.draw(study)
    faces = {
        ax.get_title().split(",")[0]: ax.get_lines()[0].get_markerfacecolor() for ax in figure.axes
    }
    assert faces == {"smollm2-135m": style.VERMILION, "relu": "white", "swiglu": "white"}
    assert style.SPECIMEN in legend(figure)
    pretrained = study[study["origin"] == "pretrained"]
    assert style.SPECIMEN not in legend(static_dynamic.draw(pretrained))


def test_what_rounding_alone_does_is_hatched(study):
    assert not any("rounding" in label for label in legend(static_dynamic.draw(study)))
    noise = study["sparsity"].where(study["method"] == "dynamic") / 100
    figure = static_dynamic.draw(study.assign(rounding=noise))
    assert_clean(figure)
    assert "rounding: \u00b12 sd" in legend(figure)
    ax = panel(figure, "relu, docs")
    (hatched,) = [part for part in ax.collections if part.get_hatch()]
    heights = hatched.get_paths()[0].vertices[:, 1]
    largest = 2 * noise[(study["model"] == "relu") & (study["corpus"] == "docs")].max()
    assert [heights.min(), heights.max()] == pytest.approx(np.exp([-largest, largest]))


def test_missing_cell(study):
    gone = study[(study["model"] != "relu") | (study["corpus"] != "docs")]
    figure = static_dynamic.draw(gone)
    assert_clean(figure)
    assert "relu, docs" not in titles(figure)


def test_missing_method_and_interval(study):
    half = study[study["method"] == "dynamic"].assign(ci_low=np.nan, ci_high=np.nan)
    figure = static_dynamic.draw(half)
    assert_clean(figure)
    assert "static: chosen once" not in legend(figure)


def test_nothing_to_draw(study):
    with pytest.raises(KeepsetError, match=r"static_dynamic: there is no .* score magnitude"):
        static_dynamic.draw(study[study["score"] == "weight"])
