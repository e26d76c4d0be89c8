"""A tokenizer and training data of a few hundred words."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from keepset.settings import Recall
from keepset.text.recall import prose_sentences
from keepset.train.rows import Rows, TrainingText, encode_documents
from keepset.train.tokenizer import train_tokenizer

DOCUMENTS = [
    f"The {a} of the {b} was seen by the {c}. Nobody knew why the {a} was there."
    for a in ("house", "river", "mountain", "garden")
    for b in ("king", "farmer", "child", "bird")
    for c in ("soldier", "teacher", "sailor")
]


@pytest.fixture(scope="package")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(DOCUMENTS, 680, seed=1)


@pytest.fixture(scope="package")
def text(tokenizer: PreTrainedTokenizerFast) -> TrainingText:
    documents = {"a": DOCUMENTS[:30], "b": DOCUMENTS[30:]}
    return encode_documents(documents, {"b": 2}, prose_sentences(DOCUMENTS), tokenizer)


@pytest.fixture(scope="package")
def rows(tokenizer: PreTrainedTokenizerFast, text: TrainingText) -> Rows:
    return Rows(text, tokenizer, Recall(words=8), rows=4, sequence=32, steps=20, seed=3)
