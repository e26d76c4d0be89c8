from __future__ import annotations

import numpy as np
import pytest
from clean import assert_clean, legend

import made_up_state
from keepset.errors import KeepsetError
from keepset.report.figures import loss_curve


@pytest.mark.parametrize("names", [["relu"], ["relu", "relu-l1", "swiglu", "mamba2", "hybrid"]])
def test_clean_at_every_size(names):
    assert_clean(loss_curve.draw(made_up_state.losses(names)))


def test_draws_what_the_table_says():
    losses = made_up_state.losses(["swiglu"])
    figure = loss_curve.draw(losses)
    assert legend(figure) == ["swiglu"]
    training, heldout = figure.axes[0].get_lines()
    known = losses.query("split == 'training'").dropna(subset="text_nll")
    assert training.get_ydata() == pytest.approx(known["text_nll"])
    held = losses.query("split == 'heldout'")
    assert heldout.get_xdata() == pytest.approx(held["tokens"] / 1e6)
    assert heldout.get_ydata() == pytest.approx(held["text_nll"])
    accuracy = figure.axes[2].get_lines()[0].get_ydata()
    assert accuracy == pytest.approx(losses.query("split == 'training'")["answer_accuracy"])


def test_unknown_zeros():
    assert_clean(loss_curve.draw(made_up_state.losses(["mamba2"]).assign(zeros_mean=np.nan)))


def test_nothing_to_draw():
    with pytest.raises(KeepsetError, match="figure loss_curve"):
        loss_curve.draw(made_up_state.losses().iloc[:0])
