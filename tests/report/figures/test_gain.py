from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, legend, titles

from keepset.errors import KeepsetError
from keepset.report.figures import gain

ROWS = [
    ("kernels", "none", "none", 1.0, 0.0, 1.6),
    ("rule", "ffn", "magnitude", 1.03, 0.1, 1.7),
    ("rule", "input", "impact", 1.01, 0.12, 1.5),
    ("budget", "all", "equal", 1.02, 0.2, 1.8),
    ("budget", "all", "loss", 1.01, 0.2, 1.8),
    ("slim", "all", "loss, thresholds", 1.013, 0.178, 1.75),
]


def gains(*models: tuple[str, str]) -> pd.DataFrame:
    """A `gains` table of models and their origins."""
    columns = ["way", "site", "score", "ratio", "bytes_left_out", "speedup_p50"]
    table = pd.DataFrame(ROWS, columns=columns)
    table = table.assign(
        corpus="wiki",
        ci_low=table["ratio"] - 0.01,
        ci_high=table["ratio"] + 0.01,
        speedup_p20=table["speedup_p50"] - 0.02,
        speedup_p80=table["speedup_p50"] + 0.02,
    )
    return pd.concat([table.assign(model=name, origin=origin) for name, origin in models])


@pytest.mark.parametrize("n", [1, 2, 8])
def test_clean_at_every_size(n):
    models = [(f"model-{i}", "specimen" if i else "pretrained") for i in range(n)]
    figure = gain.draw(gains(*models))
    assert_clean(figure)
    assert titles(figure) == [f"{name}, wiki" for name, _ in models]


def test_every_point_stands_where_it_was_measured():
    ax = gain.draw(gains(("m", "pretrained"))).axes[0]
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in ax.get_lines()
        if len(line.get_xdata()) == 1
    }
    assert points == {(x, y) for way, _, _, y, _, x in ROWS if way != "kernels"}
    assert {text.get_text() for text in ax.texts} == {"20%", "18%"}
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert dotted[0].get_xdata() == [1.6, 1.6]


def test_the_legend_names_what_is_there_alone():
    found = legend(gain.draw(gains(("m", "pretrained"))))
    assert "neurons, by |h|" in found
    assert "other inputs, by |h|" not in found
    assert "dense, by the same kernels" in found


def test_nothing_but_dense():
    table = gains(("m", "pretrained"))
    with pytest.raises(KeepsetError, match="figure gain"):
        gain.draw(table[table["way"] == "kernels"])
