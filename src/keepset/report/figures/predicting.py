"""What predicts the loss of a neuron: scores against the measured change of the loss."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import style

# As keepset.analyse.correlation.OTHER_TEXT, which needs scipy: the environment of figures has none.
_OTHER = "_other"
_TITLES = {"": "scored on the text of the ablation", _OTHER: "scored on other text"}
_LOOKS = {
    "taylor": (style.GREEN, "^"),
    "output": (style.ORANGE, "s"),
    "magnitude": (style.BLUE, "o"),
    "weight": (style.PURPLE, "D"),
}
_ROW = 0.5  # inches for one model and corpus
_APART = 0.2  # of a row, between the marks of two scores


@style.styled
def draw(correlation: pd.DataFrame) -> Figure:
    """Spearman's correlation of each score with the |loss change| of ablating a neuron alone.

    Args:
        correlation: The `correlation` table; of it, the impact `loss`, mean over layers.

    Returns:
        The figure: scores taken on the text that neurons were ablated on, and on other text; a row
        per model and corpus. The norm of the output weights knows no text and stands in both.

    Raises:
        KeepsetError: no neuron was ablated.
    """
    table = correlation[(correlation["impact"] == "loss") & (correlation["layer"] == -1)]
    style.need(table, "predicting", "single-unit ablation")
    score, other = table["size"].str.removesuffix(_OTHER), table["size"].str.endswith(_OTHER)
    table = table.assign(row=table["model"] + ", " + table["corpus"], score=score)
    rows = style.in_order(table["row"])
    texts = {"": table[~other], _OTHER: table[other | (score == "weight")]}
    texts = {text: part for text, part in texts.items() if text == "" or other.any()}
    figure = Figure(figsize=(style.WIDTH, 1.0 + _ROW * len(rows)))
    axes = figure.subplots(1, len(texts), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (text, part) in zip(axes, texts.items(), strict=True):
        _panel(ax, part, rows)
        ax.set_title(_TITLES[text])
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_xlim(-1.05, 1.05)
    figure.supxlabel("Spearman's correlation with |change of the loss|, over neurons", fontsize=8)
    handles = [
        style.handle(name, *look, "")
        for name, look in _LOOKS.items()
        if (table["score"] == name).any()
    ]
    style.legend(figure, handles, table)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, rows: list[str]) -> None:
    style.guide(ax, x=0)
    ax.tick_params(axis="y", length=0)
    for place, (name, (colour, marker)) in enumerate(_LOOKS.items()):
        apart = _APART * (place - (len(_LOOKS) - 1) / 2)
        for _, one in table[table["score"] == name].iterrows():
            y = rows.index(one["row"]) + apart
            ax.plot([one["ci_low"], one["ci_high"]], [y, y], color=colour, linewidth=1.2)
            look = style.marks(one["origin"] == "specimen", colour)
            ax.plot(one["spearman"], y, marker=marker, **look)
