"""How specimens were trained: loss on text, and recall, by tokens seen."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import style

_PANELS = {
    "text_nll": ("text loss (nats/token)", "text; faint: training, solid: held-out"),
    "answer_nll": ("answer loss (nats/token)", "answers in training episodes of recall"),
    "answer_accuracy": ("share right", "answer tokens in training episodes"),
    "zeros_mean": ("share of zeros", "FFN activations; dotted: layer with the fewest zeros"),
}


@style.styled
def draw(*tables: pd.DataFrame) -> Figure:
    """Loss on text, loss and accuracy on answers, and natural zeros; a colour per specimen.

    Args:
        tables: `losses` tables of keepset.train.

    Returns:
        The figure. The training loss of text is unknown where a step's rows were all recall.

    Raises:
        KeepsetError: there is no step.
    """
    losses = pd.concat(tables, ignore_index=True)
    style.need(losses, "loss_curve", "training of a specimen")
    names = style.in_order(losses["specimen"])
    looks = dict(zip(names, style.CYCLE, strict=False))
    figure = Figure(figsize=(style.WIDTH, 4.2))
    axes = figure.subplots(2, 2, sharex=True)
    for ax, (column, (label, title)) in zip(axes.flat, _PANELS.items(), strict=True):
        for (name,), rows in style.split(losses, "specimen"):
            _curve(ax, column, rows, looks[name])
        ax.set_ylabel(label)
        ax.set_title(title)
    for ax in axes.flat[2:]:
        ax.set_ylim(-0.03, 1.03)
    figure.supxlabel("training tokens seen (millions)", fontsize=8)
    handles = [style.handle(name, colour) for name, colour in looks.items()]
    style.legend(figure, handles, losses.assign(origin="pretrained"))
    return figure


def _curve(ax: Axes, column: str, rows: pd.DataFrame, colour: str) -> None:
    training, heldout = (rows[rows["split"] == split] for split in ("training", "heldout"))
    faint = column == "text_nll"
    known = training.dropna(subset=column)
    ax.plot(known["tokens"] / 1e6, known[column], color=colour, lw=0.6, alpha=0.4 if faint else 1)
    if faint:
        ax.plot(heldout["tokens"] / 1e6, heldout[column], color=colour)
    if column == "zeros_mean":
        ax.plot(training["tokens"] / 1e6, training["zeros_min"], color=colour, lw=0.6, ls=":")
