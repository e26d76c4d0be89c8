from __future__ import annotations

import pytest
from clean import assert_clean, panel, texts, titles

import made_up_state
from keepset.analyse import quadrants
from keepset.errors import KeepsetError
from keepset.report.figures import phantom


def tables(models=("mamba2", "zamba2-1.2b")):
    channels = quadrants.with_quadrants(made_up_state.channels(models, layers=2, n=32))
    return channels, quadrants.shares(channels)


@pytest.mark.parametrize("models", [["mamba2"], list(made_up_state.MODELS)])
def test_clean_at_every_size(models):
    assert_clean(phantom.draw(*tables(models)))


def test_draws_what_the_tables_say():
    channels, shares = tables()
    figure = phantom.draw(channels, shares)
    ax = panel(figure, "mamba2")
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == 64
    facts = shares.iloc[0]
    shown = [text.get_text() for text in ax.texts]
    assert shown == [f"{100 * facts[n]:.0f}%" for n in ("phantom", "strong", "idle", "corporeal")]
    assert f"differ in {100 * facts['disagreement']:.0f}%" in ax.get_title()
    medians = channels.query("model == 'mamba2'").iloc[0]
    across, up = (line.get_xdata()[0] for line in ax.get_lines()[:1]), ax.get_lines()[1]
    assert next(across) == medians["weight_median"]
    assert up.get_ydata()[0] == medians["energy_median"]


def test_specimens_are_named():
    figure = phantom.draw(*tables())
    assert ["(specimen)" in title for title in titles(figure)] == [False, True]
    assert any(text == "specimen, trained here" for text, _ in texts(figure))


def test_nothing_to_draw():
    channels, shares = tables()
    with pytest.raises(KeepsetError, match="figure phantom"):
        phantom.draw(channels.iloc[:0], shares)
