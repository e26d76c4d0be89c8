"""The text that a recipe is found on, and the text that it is reported on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keepset.errors import TextError
from keepset.files import store
from keepset.slim.quality import Part
from keepset.text import Encoded


@dataclass(frozen=True)
class Texts:
    """What a recipe is found on, and what it is reported on; they share no block and no item.

    Attributes:
        calibration: (n_blocks, tokens) int64: sets, thresholds and shares are chosen on it.
        search: What candidates are compared on.
        report: What the one that is chosen is checked on.
        label: Where the text comes from.
    """

    calibration: Tensor
    search: Part
    report: Part
    label: str = "text"


def split_texts(
    blocks: Tensor,
    documents: Tensor,
    calibration_tokens: int,
    items: Sequence[Encoded] = (),
    label: str = "text",
) -> Texts:
    """Cut text into calibration, search (a third of the rest) and report.

    Args:
        blocks: (n_blocks, tokens) int64.
        documents: (n_blocks,) int64, the document of each.
        calibration_tokens: How much is for calibration; at most a third of the text.
        items: Of the task: half of them, by a draw, are for the search.
        label: Where the text comes from.

    Raises:
        TextError: there is too little text; the message says how much is needed.
    """
    n, width = len(blocks), blocks.shape[1]
    if n < 16:
        raise TextError(
            f"{label}: {n} blocks of {width} tokens are too little text; {16 * width} tokens are"
            " needed, and more narrow the bounds: 6,144 do for a budget of 3%"
        )
    # Neighbours are alike: each part takes blocks from the whole text, in turn.
    n_calibration = min(max(1, calibration_tokens // width), n // 3)
    place = torch.arange(n)
    calibrates = torch.zeros(n, dtype=torch.bool)
    calibrates[(place[:n_calibration] * n) // n_calibration] = True
    rest = place[~calibrates]
    searches = rest[::3]
    reports = rest[torch.arange(len(rest)) % 3 != 0]
    # Items may come in turns of corpora or difficulty: a draw splits them.
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = [items[number] for number in order]
    half = len(drawn) // 2
    parts = (
        Part("search", blocks[searches], documents[searches], drawn[:half]),
        Part("report", blocks[reports], documents[reports], drawn[half:]),
    )
    return Texts(blocks[calibrates], *parts, label)


def digest(texts: Texts) -> str:
    """A digest of all texts and items."""
    parts = [texts.calibration, texts.search.blocks, texts.report.blocks]
    parts_of_task = (*texts.search.items, *texts.report.items)
    items = [(item.ids, item.target_start) for item in parts_of_task]
    return store.fingerprint(*(part.numpy().tobytes() for part in parts), repr(items))
