"""The training data."""

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.settings import Recall
from keepset.text.recall import THINGS
from keepset.train.rows import Rows, TrainingText, encode_documents


def test_batches_depend_on_the_step_alone(
    rows: Rows, text: TrainingText, tokenizer: PreTrainedTokenizerFast
) -> None:
    again = Rows(text, tokenizer, Recall(words=8), rows=4, sequence=32, steps=20, seed=3)
    later = again.batch(17)
    for step in range(18):
        first = rows.batch(step)
    assert torch.equal(first.ids, later.ids)
    assert torch.equal(first.answers, later.answers)
    assert not torch.equal(first.ids, rows.batch(16).ids)


def test_text_rows_of_an_epoch_are_its_documents(
    text: TrainingText, tokenizer: PreTrainedTokenizerFast
) -> None:
    only_text = Rows(text, tokenizer, Recall(share=0), rows=1, sequence=16, steps=9, seed=3)
    n = text.epoch_tokens // 16
    epoch = torch.cat([only_text.batch(step).ids[0] for step in range(n)])
    documents = tokenizer.decode(epoch).split("<|endoftext|>")
    counted = {t: documents.count(t) for t in documents[:-1]}
    repeated = tokenizer.decode(text.tokens[text.bounds[35] : text.bounds[36] - 1])
    assert counted[repeated] == 2
    assert sorted(counted.values())[0] == 1
    following = torch.cat([only_text.batch(n + step).ids[0] for step in range(n)])
    assert not torch.equal(epoch, following)


def test_the_share_of_recall_rows_falls_and_comes_out(
    text: TrainingText, tokenizer: PreTrainedTokenizerFast
) -> None:
    recall = Recall(share=0.3, lead=0.5, words=0)
    rows = Rows(text, tokenizer, recall, rows=4, sequence=16, steps=80, seed=3)
    counts = [int(rows.batch(step).recall.sum()) for step in range(80)]
    assert sum(counts[:4]) >= 14
    # Over the lead of 40 steps the mean share is halfway between 1 and 0.3; then it is 0.3.
    assert sum(counts[:40]) == 4 * 40 * 0.65
    assert abs(sum(counts[40:]) - 4 * 40 * 0.3) <= 1
    without_lead = Recall(share=0.3, lead=0, words=0)
    rows = Rows(text, tokenizer, without_lead, rows=4, sequence=16, steps=80, seed=3)
    assert sum(int(rows.batch(step).recall.sum()) for step in range(80)) == int(80 * 4 * 0.3)


def test_answers_are_things_that_the_row_has_stated(
    rows: Rows, tokenizer: PreTrainedTokenizerFast
) -> None:
    seen = 0
    for step in range(20):
        batch = rows.batch(step)
        assert not batch.answers[~batch.recall].any()
        for ids, answers in zip(batch.ids[batch.recall], batch.answers[batch.recall], strict=True):
            for position in answers.nonzero()[:, 0].tolist():
                word = tokenizer.decode(ids[position : position + 1]).strip()
                assert word in THINGS
                fact = tokenizer.decode(ids[position - 1 : position + 1])
                assert fact.endswith(f" {word}")
                assert fact in tokenizer.decode(ids[: position - 1])
                seen += 1
    assert seen > 10


def test_facts_and_words_grow_with_the_curriculum(
    text: TrainingText, tokenizer: PreTrainedTokenizerFast
) -> None:
    recall = Recall(share=1, facts=8, words=40, curriculum=0.5)
    rows = Rows(text, tokenizer, recall, rows=8, sequence=128, steps=100, seed=3)
    assert rows._limits(0) == (1, 1)
    assert rows._limits(24) == (4, 20)
    assert rows._limits(49) == rows._limits(99) == (8, 40)


def test_a_token_that_does_not_fit_into_two_bytes_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    large = copy.deepcopy(tokenizer)
    large.add_tokens([f"<{number}>" for number in range(2**16)])
    with pytest.raises(TextError, match=r"training.vocabulary: \d+ entries; .* 65536"):
        encode_documents({"a": ["one <65000>"]}, {}, [], large)
    with pytest.raises(TextError, match="no document to train on"):
        encode_documents({"a": []}, {}, [], tokenizer)


def test_too_little_text_is_refused(text: TrainingText, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"training\.text: \d+ tokens of text do not fill"):
        Rows(text, tokenizer, Recall(), rows=1, sequence=100_000, steps=1, seed=1)


def test_recall_without_prose_is_refused(
    text: TrainingText, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = TrainingText(text.tokens, text.bounds, np.array(text.repeats), ())
    with pytest.raises(TextError, match=r"no prose for the recall rows"):
        Rows(bare, tokenizer, Recall(), rows=1, sequence=8, steps=1, seed=1)
