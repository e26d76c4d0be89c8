from __future__ import annotations

import pytest
from clean import assert_clean, legend, titles

from keepset.errors import KeepsetError
from keepset.report.figures import dial, style


def lines(ax, dash):
    return [
        line
        for line in ax.get_lines()
        if line.get_linestyle() == dash and len(line.get_xdata()) > 2
    ]


def test_clean_at_every_size(ratios):
    assert_clean(dial.draw(ratios))


def test_draws_what_the_table_says(study):
    figure = dial.draw(study)
    ax = figure.axes[titles(figure).index("smollm2-135m, docs")]
    (oracle,), (causal,) = lines(ax, "-"), lines(ax, "--")
    rows = study.query(
        "model == 'smollm2-135m' and corpus == 'docs' and sparsity == 0.9"
    ).set_index(["method", "choice", "window"])["ratio"]
    assert oracle.get_xdata() == pytest.approx(range(9))  # log2 of 1..128, then the sequence
    assert oracle.get_ydata()[0] == rows["dynamic", "oracle", "1"]
    assert oracle.get_ydata()[-1] == rows["windowed", "oracle", "sequence"]
    assert causal.get_ydata()[0] == rows["windowed", "causal", "1"]
    (static,) = [line for line in ax.get_lines() if line.get_marker() == "_"]
    assert static.get_ydata() == [rows["static", "none", "corpus"]]
    assert static.get_xdata()[0] > 8


def test_shows_only_sparsities_of_the_dial(study):
    figure = dial.draw(study[study["corpus"] == "docs"])
    assert [text for text in legend(figure) if "left out" in text] == ["90% left out"]


def test_without_causal_and_static(study):
    oracle = study[(study["choice"] == "oracle") & (study["window"] != "sequence")]
    figure = dial.draw(oracle)
    assert_clean(figure)
    assert not any("causal" in text for text in legend(figure))


def test_nothing_to_draw(study):
    with pytest.raises(KeepsetError, match="figure dial: there is no windowed run"):
        dial.draw(study[study["method"] != "windowed"])


def test_specimens_are_hollow(study):
    figure = dial.draw(study)
    ax = figure.axes[titles(figure).index("relu, docs")]
    assert {line.get_markerfacecolor() for line in lines(ax, "-")} == {"white"}
    assert style.SPECIMEN in legend(figure)
