from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, titles

from keepset.errors import KeepsetError
from keepset.report.figures import dial, expert_dial


def test_experts_alone_are_drawn(study):
    relu = study[study["model"] == "relu"]
    experts = relu.assign(site="expert", ratio=2 * relu["ratio"], ci_low=2 * relu["ci_low"])
    experts["ci_high"] *= 2
    figure = expert_dial.draw(pd.concat([study, experts]))
    assert_clean(figure)
    panels = [title for title in titles(figure) if title]
    assert panels == [title for title in titles(dial.draw(relu)) if title]
    (oracle,) = [
        line
        for line in figure.axes[titles(figure).index("relu, docs")].get_lines()
        if line.get_linestyle() == "-" and len(line.get_xdata()) > 2
    ]
    rows = relu.query("corpus == 'docs' and sparsity == 0.9 and choice == 'oracle'")
    first = rows.query("method == 'dynamic' and score == 'magnitude'")["ratio"].item()
    assert oracle.get_ydata()[0] == pytest.approx(2 * first)


def test_nothing_to_draw(study):
    with pytest.raises(KeepsetError, match="figure expert_dial: there is no windowed run"):
        expert_dial.draw(study)
