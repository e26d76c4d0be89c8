from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, strategies as st
from made_prose import make_prose

from keepset.errors import TextError
from keepset.settings import Corpus
from keepset.text.corpora import SHARES, join_documents, paragraphs, prepare_corpus


def _write(folder: Path, name: str, texts: list[str]) -> dict[str, str]:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return {"path": str(path)}


def _prepare(folder: Path, seed: int = 0, **sources: list[str]) -> pd.DataFrame:
    given_sources = {split: _write(folder, split, texts) for split, texts in sources.items()}
    return prepare_corpus("made", Corpus.model_validate(given_sources), seed)


def _documents(count: int, paragraphs: int = 2) -> list[str]:
    return [make_prose(seed, paragraphs) for seed in range(count)]


def _texts(table: pd.DataFrame, split: str) -> list[str]:
    return table.loc[table["split"] == split, "text"].tolist()


@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=40),
    seed=st.integers(0, 5),
)
def test_splits_never_overlap_and_lose_nothing(sizes: list[int], seed: int) -> None:
    texts = [make_prose(number, size, sentences=1) for number, size in enumerate(sizes)]
    with TemporaryDirectory() as folder:
        table = _prepare(Path(folder), seed, text=texts)
    assert set(table["split"]) == set(SHARES)
    assert table.groupby("document")["split"].nunique().max() == 1
    # Documents are cut, never changed: put together, the pieces are the text they came from.
    source = "".join(texts)
    assert all(text in source for text in table["text"])
    assert sum(table["text"].str.len()) == len(source)


def test_shares_come_out_by_characters(tmp_path: Path) -> None:
    table = _prepare(tmp_path, text=_documents(200))
    sizes = table["text"].str.len().groupby(table["split"]).sum()
    shares = (sizes / sizes.sum()).to_dict()
    assert shares == pytest.approx(SHARES, abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_dominant_document_is_cut_so_that_shares_come_out(tmp_path: Path, count: int) -> None:
    texts = [make_prose(99, 200), *_documents(count - 1)]
    table = _prepare(tmp_path, text=texts)
    sizes = table["text"].str.len().groupby(table["split"]).sum()
    assert (sizes / sizes.sum()).to_dict() == pytest.approx(SHARES, abs=0.1)
    assert table["text"].str.len().max() < 6000
    parts = "".join(sorted(table["text"], key=texts[0].find))
    assert texts[0] in parts


def test_the_start_of_a_split_comes_from_many_long_documents(tmp_path: Path) -> None:
    texts = [make_prose(seed, 120) for seed in range(24)]
    table = _prepare(tmp_path, text=texts)
    evaluation = table[table["split"] == "evaluation"]
    count = evaluation["document"].nunique()
    assert count >= 6
    assert evaluation["document"][:count].is_unique
    assert evaluation["text"].str.len().min() >= 8_000


def test_the_split_depends_on_text_and_seed_alone(tmp_path: Path) -> None:
    texts = _documents(30)
    first, again = _prepare(tmp_path, 1, text=texts), _prepare(tmp_path, 1, text=texts[::-1])
    for split in SHARES:
        assert _texts(first, split) == _texts(again, split)
    assert _texts(first, "evaluation") != _texts(_prepare(tmp_path, 2, text=texts), "evaluation")


def test_separate_sources_keep_their_documents_and_order(tmp_path: Path) -> None:
    texts = {"calibration": _documents(3), "evaluation": [make_prose(50, 300), make_prose(51, 2)]}
    table = _prepare(tmp_path, **texts)
    for split, expected in texts.items():
        assert _texts(table, split) == expected
        assert set(table.loc[table["split"] == split, "source"]) == {split}
    assert _texts(table, "heldout") == []
    assert table["document"].is_unique
    with_heldout = _prepare(tmp_path, **texts, heldout=["held out"])
    assert _texts(with_heldout, "heldout") == ["held out"]


def test_a_table_survives_parquet(tmp_path: Path) -> None:
    table = _prepare(tmp_path, text=_documents(9))
    assert list(table.columns) == ["split", "document", "section", "text", "source"]
    table.to_parquet(tmp_path / "table.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)


@pytest.mark.parametrize("reported", ["evaluation", "heldout"])
def test_calibration_that_repeats_reported_paragraphs_is_left_out(
    tmp_path: Path, reported: str
) -> None:
    licence = "Long words of a licence that all of the files of this corpus repeat. " * 4
    texts = {"calibration": [f"own\n\n  {licence}\n\nmore", "short\n\nown"], "evaluation": ["x"]}
    texts[reported] = [f"{licence}\n \nother", "short\n\nother"]
    assert _texts(_prepare(tmp_path, **texts), "calibration") == ["short\n\nown"]
    with pytest.raises(TextError, match=r"corpora\.made: all calibration text repeats"):
        _prepare(tmp_path, **{**texts, "calibration": texts["calibration"][:1]})


def test_no_long_paragraph_is_shared_between_splits_of_one_source(tmp_path: Path) -> None:
    shared = make_prose(7, 1, sentences=8)
    table = _prepare(tmp_path, text=[f"{text}\n\n{shared}" for text in _documents(9)] + ["x" * 99])
    assert not any(shared in text for text in _texts(table, "calibration"))


def test_too_little_text_to_split(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"corpora\.made\.text: too little text .*1 documents"):
        _prepare(tmp_path, text=["one document"])


def test_errors_of_a_source_name_its_key(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"corpora\.made\.evaluation: all 1 documents are empty"):
        _prepare(tmp_path, calibration=["a"], evaluation=[""])


def test_documents_are_joined_by_a_blank_line_unless_they_end_a_line() -> None:
    assert join_documents(["a", "b\n", "c\n\n", "d"]) == "a\n\nb\nc\n\nd"
    assert join_documents([]) == ""


def test_paragraphs_are_parted_by_blank_lines() -> None:
    assert paragraphs("\n a\nb\n \n\n  c \n\n") == ["a\nb", "c"]
