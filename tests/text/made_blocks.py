"""Corpora in memory, and their blocks, for the tests of text."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from hypothesis import strategies as st
from made_prose import make_prose
from transformers import PreTrainedTokenizerFast

from keepset.text.blocks import Blocks, make_blocks
from keepset.text.corpora import join_documents

documents = st.lists(
    st.integers(0, 50).flatmap(
        lambda seed: st.integers(1, 30).map(lambda size: make_prose(seed, size))
    ),
    min_size=1,
    max_size=3,
)


def table_of(calibration: list[str], evaluation: list[str], separate: bool) -> pd.DataFrame:
    """A corpus as `prepare_corpus` returns it, of whole documents."""
    rows = [("calibration", text) for text in calibration]
    rows += [("evaluation", text) for text in evaluation]
    table = pd.DataFrame(rows, columns=["split", "text"])
    table["document"] = range(len(table))
    return table.assign(source=table["split"] if separate else "text")


def ids_of(bpe: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """The tokens of the joined texts."""
    return bpe(join_documents(texts), add_special_tokens=False)["input_ids"]


def blocks_of(*arguments: Any) -> Blocks:
    """Blocks, however few there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make_blocks("made", *arguments)
