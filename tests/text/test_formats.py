"""Local files as people have them: rows in many forms, compressed or not, under any name."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pandas as pd
import pyarrow
import pytest

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.sources import read_documents

# What readers make something else of: missing values, numbers, dates, line ends, quotes.
TEXTS = ["one", "NA", "null", "2024-01-02", "1.30", 'a, "b"\tc', "two\nlines", "日本"]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
LISTED = json.dumps(ROWS).encode()
PRETTY = json.dumps(ROWS, indent=2).encode()
SPREAD = "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()
RAW = b" \n = One = \n \n Text . \n = = Part = = \n \n More . \n \n = Two = \n \n Text . \n"
# Names of tests hold these bytes, and a gzip file the time at which it was made.
CODECS = {"gz": partial(gzip.compress, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}


def _pack(codec: str, data: bytes) -> bytes:
    """`data` in two frames, as tools that work in parallel write it."""
    half = len(data) // 2
    if codec in CODECS:
        return CODECS[codec](data[:half]) + CODECS[codec](data[half:])
    packed = pyarrow.BufferOutputStream()
    for part in (data[:half], data[half:]):
        frame = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(frame, {"zst": "zstd"}.get(codec, codec)) as stream:
            stream.write(part)
        packed.write(frame.getvalue())
    return packed.getvalue().to_pybytes()


def _read(path: Path, **keys: object) -> list[str]:
    source = TextSource.model_validate({"path": str(path), **keys})
    return read_documents(source, "corpora.made.text")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c4-validation.00000-of-00008.json.gz", _pack("gz", LINES)),
        ("00.jsonl.zst", _pack("zst", LINES)),
        ("rows.jsonl.lz4", _pack("lz4", LINES)),
        ("rows.jsonl.bz2", _pack("bz2", LINES)),
        ("rows.JSONL.xz", _pack("xz", LINES)),
        ("rows.jsonl.gz", LINES),  # its maker has unpacked it and left its name
        ("rows.jsonl", _pack("gz", LINES)),
        ("list.json", LISTED),
        ("texts.json", json.dumps(TEXTS).encode()),
        ("texts.jsonl", "\n".join(map(json.dumps, TEXTS)).encode()),
        ("list.jsonl", LISTED),
        ("pretty.json", PRETTY),
        ("pretty.json.zst", _pack("zst", PRETTY)),
        ("spread.json", SPREAD),
        ("rows.ndjson", b"\xef\xbb\xbf" + LINES),
        ("part-00000", LINES),
        ("part-00001", PRETTY),
        ("part.00002", _pack("gz", LISTED)),
    ],
)
def test_json_is_read_in_whatever_form(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert _read(path) == TEXTS


def _write_csv(path: Path, separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([["id", "text"], *([row["id"], row["text"]] for row in ROWS)])


def _write_arrow(path: Path, new: Callable[..., pyarrow.RecordBatchFileWriter]) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.csv": _write_csv,
    "rows.tsv": lambda path: _write_csv(path, "\t"),
    "ROWS.TSV": lambda path: _write_csv(path, "\t"),
    "stream.arrow": lambda path: _write_arrow(path, pyarrow.ipc.new_stream),
    "file.arrow": lambda path: _write_arrow(path, pyarrow.ipc.new_file),
    "rows.feather": lambda path: _write_arrow(path, pyarrow.ipc.new_file),
    "rows.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "train-00000": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "data-00000-of-00001": lambda path: _write_arrow(path, pyarrow.ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITERS)
def test_tables_are_read_with_every_text_as_it_is(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert _read(tmp_path / name) == TEXTS
    assert _read(tmp_path / name, max_documents=2) == TEXTS[:2]
    with pytest.raises(TextError, match=r"no field 'body'; the fields are: id, text"):
        _read(tmp_path / name, field="body")


def test_a_long_text_in_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "word " * 400_000 + "\n")
    assert [len(text) for text in _read(path)] == [2_000_000]


def test_a_dataset_saved_to_disk_is_a_source(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "whole")
    assert _read(tmp_path / "whole") == TEXTS
    # A selection is saved as all rows and the numbers of those that are meant.
    whole.select([2, 0]).save_to_disk(tmp_path / "part")
    assert _read(tmp_path / "part") == [TEXTS[2], TEXTS[0]]
    datasets.DatasetDict(train=whole, test=whole.select([1])).save_to_disk(tmp_path / "splits")
    assert _read(tmp_path / "splits", split="test") == [TEXTS[1]]
    for keys in ({}, {"split": "dev"}):
        with pytest.raises(TextError, match=r"splits: set split to one of: train, test"):
            _read(tmp_path / "splits", **keys)
    with pytest.raises(TextError, match="whole has no splits; leave split out"):
        _read(tmp_path / "whole", split="train")
    with pytest.raises(TextError, match=r"no field 'body'; the fields are: id, text"):
        _read(tmp_path / "whole", field="body")
    hub = TextSource(hub=str(tmp_path / "whole"), split="train")
    with pytest.raises(TextError, match="was saved to disk; give it as path"):
        read_documents(hub, "corpora.made.text")


@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.train.tokens", "valid.txt", "wiki.raw.gz"])
def test_wikitext_as_a_file_is_articles_with_no_character_lost(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_pack("gz", RAW) if name.endswith("gz") else RAW)
    texts = _read(path)
    assert [text.strip().partition("\n")[0] for text in texts] == ["= One = ", "= Two = "]
    assert "".join(texts) == RAW.decode()


@pytest.mark.parametrize("name", ["notes", "notes.txt.gz", "a.tex", "v1.2"])
def test_what_has_no_other_form_is_text(tmp_path: Path, name: str) -> None:
    text = "{\\bf One} [two]\n = not a title, three = \n"
    path = tmp_path / name
    path.write_bytes(_pack("gz", text.encode()) if name.endswith("gz") else text.encode())
    assert _read(path) == [text]


def test_a_mediawiki_dump_is_known_by_its_content(tmp_path: Path) -> None:
    prose = "A sentence that is said again and again until the article is long enough. " * 10
    dump = (
        f"<mediawiki><page><ns>0</ns><revision><text>{prose}</text></revision></page></mediawiki>"
    )
    for name, content in (
        ("dump.xml-p1p2.bz2", bz2.compress(dump.encode())),
        ("dump", dump.encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert _read(tmp_path / name) == [prose.strip()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"\x00\x01", "cannot tell the format of .*a.bin by its content; set format"),
        ("wikitext-2-raw-v1.zip", b"PK\x03\x04", "is a zip archive; unpack it"),
        (
            "a.jsonl.gz",
            _pack("gz", b'{"text": "a"}\n{"text"\n'),
            r"a\.jsonl\.gz, line 2 is not JSON",
        ),
        ("a.jsonl.gz", CODECS["gz"](LINES)[:60], r"cannot read .*a\.jsonl\.gz: "),
        ("a.jsonl.zst", _pack("zst", LINES)[:60], r"cannot read .*a\.jsonl\.zst: "),
        ("a.jsonl.xz", lzma.compress(LINES)[:60], r"cannot read .*a\.jsonl\.xz: "),
        ("a.json", b'[\n {"text": "a"},\n {"text" "b"}\n]', "line 3 is not JSON"),
        ("a.json", b'\n\n{\n "text": a\n}', "line 4 is not JSON"),
        ("a.json", b'[{"text": "a"}, {"body": "b"}]', "row 2: no field 'text'"),
        ("a.json", b'[{"text": "a"}, 3]', "row 2: a row must be a mapping, got int"),
        ("a.json", b'{"text": "\\ud800"}', "row 1: field 'text' has half of a surrogate pair"),
        ("a.csv", b"text\na\nb,c\n", r"cannot read .*a\.csv as CSV: .*Row #3"),
        ("a.csv", b"text\ncaf\xe9\n", r"cannot read .*a\.csv as CSV: .*UTF8"),
        ("a.csv", b"", r"cannot read .*a\.csv as CSV: Empty"),
        ("a.arrow", b"ARROW1 junk", r"cannot read .*a\.arrow as Arrow"),
        ("a.arrow", b"junk", r"cannot read .*a\.arrow as Arrow"),
        ("a.txt.gz", _pack("gz", b"a\0b"), "binary file"),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextError, match=rf"corpora\.made\.text.*{message}"):
        _read(path)


def test_a_large_file_is_not_read_past_max_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    # Cut off in its middle: whoever reads on has an error.
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' + LINES * 20_000, 1)[:200_000])
    assert _read(path, max_documents=1) == ["a"]


def test_settings_of_rows_are_refused_for_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    for key in ("field", "split"):
        with pytest.raises(TextError, match=rf"text\.{key}: .*a\.txt is text without rows"):
            _read(tmp_path / "a.txt", **{key: "body"})
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(TextError, match=r"a\.jsonl has no splits"):
        _read(tmp_path / "a.jsonl", split="train")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "a", "config": "b"}, "config, revision and streaming are for hub"),
        ({"path": "a", "revision": "b"}, "config, revision and streaming are for hub"),
        ({"path": "a", "streaming": True}, "config, revision and streaming are for hub"),
        ({"package": "a", "file": "b", "split": "c"}, "split is for hub datasets"),
        ({"hub": "a", "split": "b", "format": "csv"}, "format is for files only"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSource.model_validate(keys)
