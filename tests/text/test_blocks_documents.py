from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st
from made_blocks import blocks_of, documents, ids_of, table_of
from made_prose import make_prose
from transformers import PreTrainedTokenizerFast

from keepset.settings import Corpus
from keepset.text.blocks import Cutting, make_blocks
from keepset.text.corpora import prepare_corpus
from keepset.text.sampling import whole_documents


def _many(count: int, paragraphs: int = 6, seed: int = 0) -> list[str]:
    return [make_prose(seed + number, paragraphs) for number in range(count)]


def test_a_block_of_a_stream_is_of_the_document_it_begins_in(bpe: PreTrainedTokenizerFast) -> None:
    texts = [make_prose(1, 3), make_prose(2, 1), make_prose(3, 4)]
    blocks = blocks_of(table_of(texts, texts, True), bpe, 16, 10**4, 10**4, Cutting("stream"))
    joined = [f"{text}\n\n" for text in texts]
    before = [sum(map(len, joined[:number])) for number in range(3)]
    begins = [
        len(bpe.decode(blocks.evaluation[:row].flatten())) for row in range(len(blocks.document))
    ]
    assert blocks.document.tolist() == [sum(b <= at for b in before[1:]) for at in begins]
    assert blocks.calibration_document.tolist() == blocks.document.tolist()


@settings(max_examples=40, deadline=None)
@given(documents, st.integers(2, 48), st.integers(1, 12), st.integers(0, 3))
def test_every_block_stands_in_its_document_after_its_lead_in(
    bpe: PreTrainedTokenizerFast, texts: list[str], block: int, count: int, seed: int
) -> None:
    table = table_of(texts, texts, separate=True)
    assume(any(len(ids_of(bpe, [text])) >= 2 * block for text in texts))
    blocks = blocks_of(table, bpe, block, count * block, count * block, Cutting(seed=seed))
    whole = {tuple(ids_of(bpe, order)) for n in (1, 2, 3) for order in permutations(texts, n)}
    for lead_in, ids in zip(blocks.lead_in, blocks.evaluation, strict=True):
        passage = (*lead_in.tolist(), *ids.tolist())
        assert any(_places(passage, tokens) for tokens in whole)
    for ids in blocks.calibration:
        assert any(_places(tuple(ids.tolist()), tokens) for tokens in whole)
    assert len(blocks.evaluation) <= count


def _places(part: tuple[int, ...], whole: tuple[int, ...]) -> list[int]:
    """Where `part` stands in `whole`."""
    return [
        start
        for start in range(len(whole) - len(part) + 1)
        if whole[start : start + len(part)] == part
    ]


def test_blocks_are_of_as_many_documents_as_there_are(bpe: PreTrainedTokenizerFast) -> None:
    table = table_of(_many(20), _many(20), separate=False)
    blocks = make_blocks("made", table, bpe, 16, 16 * 16, 30 * 16)
    assert sorted(blocks.calibration_document.tolist()) == [*range(16)]
    counts = blocks.document.bincount().tolist()
    assert len(counts) == 20
    assert max(counts) == 2
    # The first block of every document comes before the second of any.
    assert blocks.document[:20].tolist() == [*range(20)]


def test_the_seed_decides_documents_and_places(bpe: PreTrainedTokenizerFast) -> None:
    table = table_of(_many(20), _many(20), separate=False)
    made = [make_blocks("made", table, bpe, 16, 64, 64, Cutting(seed=seed)) for seed in (1, 1, 2)]
    assert made[0].fingerprint == made[1].fingerprint
    assert not made[0].evaluation.equal(made[2].evaluation)
    turned = make_blocks("made", table[::-1], bpe, 16, 64, 64, Cutting(seed=1))
    assert turned.fingerprint == made[0].fingerprint


@pytest.mark.parametrize("count", [1, 3, 20])
def test_no_text_is_scored_twice(bpe: PreTrainedTokenizerFast, count: int) -> None:
    texts = [f"{seed} " + " ".join(map(str, range(seed, 9000, 97))) for seed in range(count)]
    blocks = blocks_of(table_of(texts, texts, True), bpe, 16, 10**5, 10**5)
    for rows in (blocks.evaluation, blocks.calibration):
        assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    # All that a document holds after its first lead-in is used.
    lengths = [len(ids_of(bpe, [text])) for text in texts]
    assert len(blocks.evaluation) == sum(length // 16 - 1 for length in lengths)
    assert len(blocks.calibration) == sum(length // 16 for length in lengths)


def test_a_repeated_document_counts_once(bpe: PreTrainedTokenizerFast) -> None:
    texts = _many(4)
    twice = blocks_of(table_of(texts, [*texts, *texts], True), bpe, 16, 64, 8 * 16)
    once = blocks_of(table_of(texts, texts, True), bpe, 16, 64, 8 * 16)
    assert twice.evaluation.equal(once.evaluation)
    assert twice.document.tolist() == [0, 1, 2, 3] * 2


def test_short_documents_are_joined_and_count_as_one(bpe: PreTrainedTokenizerFast) -> None:
    texts = [f"Line {number} of the harbour." for number in range(40)]
    table = table_of(texts, texts, separate=True)
    blocks = make_blocks("made", table, bpe, 32, 64, 64)
    assert blocks.document.tolist() == [0, 1]
    passage = bpe.decode([*blocks.lead_in[0], *blocks.evaluation[0]])
    assert passage.count("\n\n") >= 2


@pytest.mark.parametrize("sampling", ["documents", "stream"])
def test_more_text_for_sameness_leaves_the_first_blocks_as_they_are(
    bpe: PreTrainedTokenizerFast, sampling: Any
) -> None:
    table = table_of(_many(9, 20), _many(9, 20), separate=False)
    few = make_blocks("made", table, bpe, 16, 64, 5 * 16, Cutting(sampling))
    for n_blocks in (5, 6, 40, 300):
        cutting = Cutting(sampling, sameness_tokens=16 * n_blocks)
        more = make_blocks("made", table, bpe, 16, 64, 5 * 16, cutting)
        assert (more.n_core, len(more.evaluation)) == (5, n_blocks)
        assert more.evaluation[:5].equal(few.evaluation)
        assert more.lead_in[:5].equal(few.lead_in)
        assert more.document[:5].equal(few.document)
        assert more.calibration.equal(few.calibration)
    assert few.n_core == 5


@pytest.mark.parametrize("sampling", ["documents", "stream"])
def test_longer_passages_are_of_the_same_text(bpe: PreTrainedTokenizerFast, sampling: Any) -> None:
    table = table_of(_many(9, 20), _many(9, 20), separate=False)
    cutting = Cutting(sampling, sameness_tokens=20 * 16, factors=(1, 2, 4, 9))
    blocks = make_blocks("made", table, bpe, 16, 64, 8 * 16, cutting)
    shapes = {factor: tuple(longer.evaluation.shape) for factor, longer in blocks.longer.items()}
    assert shapes == {1: (8, 16), 2: (4, 32), 4: (2, 64)}
    assert blocks.longer[1].evaluation.equal(blocks.evaluation[:8])
    assert blocks.longer[4].n_tokens.tolist() == [63, 63]
    assert blocks.longer[4].n_core == 2
    if sampling == "stream":
        assert blocks.longer[4].evaluation.flatten().equal(blocks.evaluation[:8].flatten())
    else:
        assert blocks.longer[4].document.tolist() == [0, 1]


def test_documents_are_put_together_from_their_sections(
    bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = [make_prose(seed, 120) for seed in range(24)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = Corpus.model_validate({"text": {"path": str(tmp_path / "a.jsonl")}})
    table = prepare_corpus("made", corpus, 0)
    rows = table[table["split"] == "evaluation"]
    assert len(rows) > rows["document"].nunique()
    assert set(whole_documents(rows).values()) <= set(texts)


@pytest.mark.parametrize("sampling", ["documents", "stream"])
def test_a_long_text_is_not_tokenised_whole(
    bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, sampling: Any
) -> None:
    table = table_of([make_prose(1, 3000)], [make_prose(2, 3000)], separate=False)
    lengths = []
    encode = type(bpe).__call__

    def recording(self: object, text: str, **options: object) -> object:
        lengths.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(type(bpe), "__call__", recording)
    make_blocks("made", table, bpe, 32, 256, 256, Cutting(sampling))
    assert sum(lengths) < len(table["text"][0]) / 20


def test_no_more_documents_are_tokenised_than_give_a_block(
    bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(_many(300, 2), _many(300, 2, seed=300), separate=True)
    encoded = set()
    encode = type(bpe).__call__

    def recording(self: object, text: str, **options: object) -> object:
        encoded.add(text)
        return encode(self, text, **options)

    monkeypatch.setattr(type(bpe), "__call__", recording)
    blocks = make_blocks("made", table, bpe, 16, 128, 128)
    assert len(encoded) == len(blocks.calibration) + len(blocks.evaluation) == 16
