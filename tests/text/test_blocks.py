from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from made_blocks import blocks_of, documents, ids_of, table_of
from made_prose import make_prose
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.text.blocks import (
    Blocks,
    Cutting,
    cut_blocks,
    load_blocks,
    make_blocks,
    save_blocks,
)
from keepset.text.corpora import join_documents


@pytest.fixture
def table() -> pd.DataFrame:
    return table_of([make_prose(1, 40)], [make_prose(2, 20), make_prose(3, 20)], separate=False)


STREAM = Cutting("stream")


@settings(max_examples=40, deadline=None)
@given(documents, documents, st.booleans(), st.integers(2, 48), st.integers(1, 12))
def test_blocks_put_together_are_the_start_of_the_stream(
    bpe: PreTrainedTokenizerFast,
    calibration: list[str],
    evaluation: list[str],
    separate: bool,
    block: int,
    count: int,
) -> None:
    table = table_of(calibration, evaluation, separate)
    blocks = blocks_of(table, bpe, block, count * block - 1, count * block - 1, STREAM)
    stream, reported = ids_of(bpe, calibration), ids_of(bpe, evaluation)
    chosen, scored = blocks.calibration.flatten().tolist(), blocks.evaluation.flatten().tolist()
    first, *others = blocks.lead_in
    lead_in = first.tolist()
    assert [tokens.tolist() for tokens in others] == blocks.evaluation[:-1].tolist()
    assert chosen == stream[: min(count, len(stream) // block) * block]
    if separate:
        assert scored == reported[: min(count, len(reported) // block) * block]
        after = stream[len(chosen) : len(chosen) + block]
        assert lead_in == (after if len(after) == block else chosen[-block:])
    else:
        assert lead_in + scored == reported[: min(count + 1, len(reported) // block) * block]
        assert len(lead_in) == block


def test_a_bos_token_makes_the_first_token_count(
    bpe: PreTrainedTokenizerFast, table: pd.DataFrame
) -> None:
    plain = make_blocks("made", table, bpe, 16, 64, 64)
    with_bos = make_blocks("made", table, bpe, 16, 64, 64, Cutting(bos=bpe.bos_token_id))
    assert with_bos.evaluation.equal(plain.evaluation)
    assert (plain.bos, with_bos.bos) == (None, bpe.bos_token_id)
    assert (with_bos.n_tokens - plain.n_tokens).tolist() == [1] * 4
    firsts = [len(bpe.decode(ids[:1]).encode()) for ids in plain.evaluation]
    assert (with_bos.n_bytes - plain.n_bytes).tolist() == firsts
    assert with_bos.fingerprint != plain.fingerprint


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=40, max_size=300), min_size=1, max_size=4), st.integers(2, 9))
def test_bytes_are_those_of_the_predicted_tokens(
    bpe: PreTrainedTokenizerFast, texts: list[str], block: int
) -> None:
    table = table_of(["x" * 200], texts, separate=True)
    blocks = blocks_of(table, bpe, block, block, 10**6, STREAM)
    encoded = bpe(join_documents(texts), add_special_tokens=False, return_offsets_mapping=True)
    starts = [encoded["offset_mapping"][i * block][1] for i in range(len(blocks.evaluation))]
    ends = [
        encoded["offset_mapping"][(i + 1) * block - 1][1] for i in range(len(blocks.evaluation))
    ]
    text = join_documents(texts)
    spans = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert blocks.n_bytes.tolist() == [len(span.encode()) for span in spans]
    assert blocks.n_words.tolist() == [len(span.split()) for span in spans]
    # With the first token of each block, the blocks cover the stream up to their end: no byte is
    # lost or counted twice.
    firsts = sum(
        len(text[0 if i == 0 else ends[i - 1] : starts[i]].encode()) for i in range(len(starts))
    )
    assert firsts + int(blocks.n_bytes.sum()) == len(text[: ends[-1]].encode())


def test_counts_of_a_text_known_by_hand(bpe: PreTrainedTokenizerFast) -> None:
    """One block that holds the whole text: all but its first token count."""
    text = "Zwölf Boxkämpfer jagen Viktor"
    ids = ids_of(bpe, [text])
    blocks = make_blocks("m", table_of(["x" * 200], [text], True), bpe, len(ids), 2, 2, STREAM)
    assert bpe.decode(ids[:1]) == "Z"
    assert blocks.n_tokens.tolist() == [len(ids) - 1]
    assert blocks.n_bytes.tolist() == [len(text.encode()) - 1]
    assert blocks.n_words.tolist() == [4]


def test_offsets_that_leave_out_spaces_count_the_same_bytes(
    bpe: PreTrainedTokenizerFast, table: pd.DataFrame
) -> None:
    trimming = copy.deepcopy(bpe)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert trimming("a b", return_offsets_mapping=True)["offset_mapping"][-1] == (2, 3)
    plain = make_blocks("made", table, bpe, 16, 64, 640)
    assert make_blocks("made", table, trimming, 16, 64, 640).n_bytes.equal(plain.n_bytes)


def test_types_and_shapes(bpe: PreTrainedTokenizerFast, table: pd.DataFrame) -> None:
    blocks = make_blocks("made", table, bpe, 32, 100, 65)
    assert blocks.calibration.shape == (4, 32)
    assert blocks.lead_in.shape == (3, 32)
    assert blocks.document.shape == (3,)
    assert blocks.calibration_document.shape == (4,)
    assert blocks.evaluation.shape == (3, 32)
    assert blocks.n_tokens.tolist() == [31, 31, 31]
    assert {t.dtype for t in vars(blocks).values() if isinstance(t, torch.Tensor)} == {torch.int64}
    assert bpe.bos_token_id not in blocks.evaluation


def test_a_table_without_sources_counts_as_split(
    bpe: PreTrainedTokenizerFast, table: pd.DataFrame
) -> None:
    bare = make_blocks("made", table.drop(columns="source"), bpe, 16, 64, 64)
    assert bare.fingerprint == make_blocks("made", table, bpe, 16, 64, 64).fingerprint


def test_the_fingerprint_tells_ids_and_block_apart(
    bpe: PreTrainedTokenizerFast, table: pd.DataFrame
) -> None:
    made = {
        make_blocks("made", chosen, bpe, block, calibration, 64).fingerprint
        for chosen, block, calibration in (
            (table, 16, 64),
            (table, 32, 64),
            (table, 16, 96),
            (table.assign(text=table["text"].str.upper()), 16, 64),
        )
    }
    assert len(made) == 4
    assert make_blocks("other", table, bpe, 16, 64, 64).fingerprint in made


def test_fewer_blocks_than_asked_for_are_used_with_a_warning(
    bpe: PreTrainedTokenizerFast, table: pd.DataFrame
) -> None:
    with pytest.warns(
        UserWarning, match=r"corpora\.made: (calibration|evaluation) has \d+ "
    ) as caught:
        blocks = make_blocks("made", table, bpe, 64, 10**6, 10**6)
    assert len(caught) == 2
    assert f"evaluation has {len(blocks.evaluation)} blocks of 64 tokens" in str(caught[1].message)


@pytest.mark.parametrize(
    ("short", "separate", "sampling", "needed"),
    [
        ("calibration", False, "stream", 32),
        ("evaluation", False, "stream", 64),
        ("evaluation", True, "stream", 32),
        ("calibration", True, "documents", 32),
        ("evaluation", True, "documents", 64),
    ],
)
def test_too_little_text_for_one_block(
    bpe: PreTrainedTokenizerFast, short: str, separate: bool, sampling: Any, needed: int
) -> None:
    texts = {"calibration": [make_prose(1, 9)], "evaluation": [make_prose(2, 9)], short: ["abc"]}
    table = table_of(**texts, separate=separate)
    message = rf"corpora\.made: the {short} text has \d tokens, {needed} are needed"
    with pytest.raises(TextError, match=message):
        make_blocks("made", table, bpe, 32, 64, 64, Cutting(sampling))


def test_a_slow_tokenizer_is_refused(table: pd.DataFrame) -> None:
    class Slow:
        is_fast = False
        name_or_path = "org/slow"

    with pytest.raises(TextError, match="tokenizer org/slow gives no character offsets"):
        make_blocks("made", table, Slow(), 32, 64, 64)


@pytest.fixture
def blocks(bpe: PreTrainedTokenizerFast, table: pd.DataFrame) -> Blocks:
    cutting = Cutting(sameness_tokens=96, factors=(1, 2), bos=bpe.bos_token_id)
    return make_blocks("made", table, bpe, 16, 64, 64, cutting)


def test_blocks_are_read_as_they_were_written(tmp_path: Path, blocks: Blocks) -> None:
    save_blocks(blocks, tmp_path / "b.safetensors")
    read = load_blocks(tmp_path / "b.safetensors")
    assert (read.n_core, read.bos, read.fingerprint) == (4, blocks.bos, blocks.fingerprint)
    assert [*read.longer] == [1, 2]
    assert read.longer[2].n_core == 2
    pairs = [(blocks, read), *((blocks.longer[factor], read.longer[factor]) for factor in (1, 2))]
    for written, again in pairs:
        for name, value in vars(written).items():
            if isinstance(value, torch.Tensor):
                assert value.equal(getattr(again, name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_the_same_blocks_are_the_same_bytes(tmp_path: Path, blocks: Blocks) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(16)]
    for path in paths:
        save_blocks(blocks, path)
    assert len({path.read_bytes() for path in paths}) == 1


DAMAGES = ["missing", "cut", "other tensors", "changed", "other core", "no metadata"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_blocks_are_refused(tmp_path: Path, blocks: Blocks, damage: str) -> None:
    path = tmp_path / "b.safetensors"
    save_blocks(blocks, path)
    facts = {"n_core": blocks.n_core, "bos": blocks.bos, "fingerprint": blocks.fingerprint}
    tensors, metadata = load_file(path), {"facts": json.dumps(facts)}
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "other tensors":
        save_file({"x": torch.zeros(1)}, path, metadata)
    elif damage == "changed":
        tensors["n_bytes"][0] += 1
        save_file(tensors, path, metadata)
    elif damage == "other core":
        save_file(tensors, path, {"facts": json.dumps({**facts, "n_core": 5})})
    else:
        save_file(tensors, path)
    with pytest.raises(TextError, match=r"b\.safetensors: "):
        load_blocks(path)


@pytest.mark.parametrize("letters", ["the mill turns no more ", "\U00013000\U00013050 "])
def test_a_whole_file_is_cut_without_losing_a_token(
    bpe: PreTrainedTokenizerFast, letters: str
) -> None:
    # Hieroglyphs take up to four byte-level tokens each: more tokens than characters.
    documents = [letters * 40, letters * 9]
    ids = ids_of(bpe, documents)
    blocks = cut_blocks(documents, bpe, 16, "a.txt")
    assert blocks.flatten().tolist() == ids[: len(ids) // 16 * 16]


def test_a_file_too_short_for_one_block_is_named(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"^a\.txt: the text has .* smaller block"):
        cut_blocks(["two words"], bpe, 64, "a.txt")


@pytest.mark.parametrize(("texts", "block"), [("one text", 2), (["one text"], 0)])
def test_what_cannot_be_cut_is_refused(texts: Any, block: int, tiny_tokenizer: Any) -> None:
    with pytest.raises(TextError, match="give a list of texts, and a block of one token"):
        cut_blocks(texts, tiny_tokenizer, block)
