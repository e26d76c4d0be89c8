from __future__ import annotations

import bz2
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.sources import read_documents

PROSE = "A sentence that is said again and again until the article is long enough. " * 10


def _source(**keys: object) -> TextSource:
    return TextSource.model_validate(keys)


def _read(**keys: object) -> list[str]:
    return read_documents(_source(**keys), "corpora.made.text")


def _write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_text_files_are_documents_in_sorted_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two\n"), ("a.md", "one"), ("sub/c.rst", "three")):
        _write(tmp_path / name, text)
    assert _read(path=[f"{tmp_path}/*.txt", f"{tmp_path}/**/*.rst", f"{tmp_path}/a.md"]) == [
        "two\n",
        "three",
        "one",
    ]


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    path = _write(tmp_path / "a[1].txt", "one")
    assert _read(path=[path, path]) == ["one"]


def test_paths_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "texts" / "a.txt", "one")
    monkeypatch.chdir(tmp_path)
    assert _read(path="texts/*.txt") == ["one"]


def test_line_ends_and_byte_order_mark_are_normalised(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", "\ufeffone\r\ntwo\rthree".encode())
    assert _read(path=path) == ["one\ntwo\nthree"]


def test_repeated_and_empty_documents_are_dropped_in_order(tmp_path: Path) -> None:
    rows = ["b", "a", "", "b", " ", "c", "a"]
    path = _write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": row}) for row in rows))
    assert _read(path=path) == ["b", "a", "c"]


def test_no_more_documents_are_read_than_asked_for(tmp_path: Path) -> None:
    # Reading the third row would be an error.
    path = _write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\nnot JSON\n')
    assert _read(path=path, max_documents=2) == ["a", "b"]
    for name, content in (("a.txt", b"one"), ("b.txt", b"\xff")):
        _write(tmp_path / name, content)
    assert _read(path=f"{tmp_path}/*.txt", max_documents=1) == ["one"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_give_the_field_asked_for(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    table = pd.DataFrame({"id": [1, 2], "body": ["one", "two"]})
    if ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    assert _read(path=str(path), field="body") == ["one", "two"]
    with pytest.raises(TextError, match=r"no field 'text'; the fields are: id, body"):
        _read(path=str(path))
    with pytest.raises(TextError, match=r"field 'id' is not text but"):
        _read(path=str(path), field="id")


def test_rows_that_are_lines_become_articles_with_no_character_lost(tmp_path: Path) -> None:
    rows = ["", " = One = \n", "", " Text of one . \n", " = = Part = = \n", "", " More . \n"]
    rows += ["", " = Two = \n", "", " Text of one . \n", ""]
    path = tmp_path / "wiki.parquet"
    pd.DataFrame({"text": rows}).to_parquet(path)
    documents = _read(path=str(path))
    assert len(documents) == 2
    assert documents[1].startswith(" = Two = \n")
    assert "".join(documents) == "\n\n".join(rows)


def test_rows_of_running_text_stay_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": ["one\n", "two\nthree\n"]}).to_parquet(path)
    assert _read(path=str(path)) == ["one\n", "two\nthree\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", r"corpora\.made\.text: .*a\.txt is empty"),
        ("a.txt", b"PK\x00\x01", "binary file"),
        ("a.txt", b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text"\n', "line 3 is not JSON"),
        ("a.jsonl", b"[1]", "row 1: a row must be a mapping, got int"),
        ("a.jsonl", b'{"text": ""}\n{"text": null}', "all 2 documents are empty"),
        ("a.jsonl", b"", "all 0 documents are empty"),
        ("a.parquet", b"PAR1 junk", r"cannot read .*a\.parquet as Parquet"),
        ("a.xml", b"<mediawiki><page>", "as a MediaWiki export"),
        ("a.xml.bz2", b"BZh9 junk", "as a MediaWiki export"),
        ("a.xml", b"", "as a MediaWiki export"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(TextError, match=message):
        _read(path=path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"no file matches .*none-\*\.txt"):
        _read(path=f"{tmp_path}/none-*.txt")
    with pytest.raises(TextError, match=r"is a folder; give its files"):
        _read(path=str(tmp_path))


def test_rows_and_text_do_not_mix(tmp_path: Path) -> None:
    paths = [_write(tmp_path / "a.txt", "a"), _write(tmp_path / "b.jsonl", '{"text": "b"}')]
    with pytest.raises(TextError, match="do not mix"):
        _read(path=paths)


def test_package_files_are_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "carrier_x" / "__init__.py", "raise SystemExit('imported')")
    _write(tmp_path / "carrier_x" / "data" / "a.txt", "one")
    _write(tmp_path / "lone_x.py", "raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert _read(package="carrier_x", file="data/*.txt") == ["one"]
    assert "carrier_x" not in sys.modules
    with pytest.raises(TextError, match="is a module, not a package"):
        _read(package="lone_x", file="*.txt")


def test_a_package_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(TextError, match="run `pip install --no-deps not_there_x`"):
        _read(package="not_there_x", file="*.txt")
    with pytest.raises(TextError, match="not the name of a top-level package"):
        _read(package="os.path", file="*.txt")


def test_python_modules_and_their_empty_ones(tmp_path: Path) -> None:
    paths = [_write(tmp_path / "__init__.py", ""), _write(tmp_path / "a.py", "x = 1\n")]
    assert _read(path=paths) == ["x = 1\n"]


def test_pydoc_topics_are_read_and_not_run(tmp_path: Path) -> None:
    path = _write(tmp_path / "topics.py", "# made\ntopics = {'a': 'one', 'b': 'two'}\n")
    assert _read(path=path, format="pydoc") == ["one", "two"]
    for code in ("other = {}", "topics = open('x')", "topics = [", "topics = 1"):
        with pytest.raises(TextError, match=r"topics\.py"):
            _read(path=_write(tmp_path / "topics.py", code), format="pydoc")


def test_the_standard_library_is_a_package() -> None:
    topics = _read(package="stdlib", file="pydoc_data/topics.py", format="pydoc")
    assert len(topics) > 50
    assert any("assert" in topic for topic in topics)


def _page(text: str, namespace: int = 0, redirect: str = "") -> str:
    return (
        f"<page><title>T</title><ns>{namespace}</ns>{redirect}"
        f"<revision><text>{text}</text></revision></page>"
    )


@pytest.mark.parametrize("ending", ["xml", "xml.bz2"])
def test_mediawiki_articles_without_redirects_stubs_and_talk(tmp_path: Path, ending: str) -> None:
    pages = [
        _page(f"'''One''' is [[x|linked]]. {PROSE}"),
        _page(f"Redirect. {PROSE}", redirect='<redirect title="One" />'),
        _page(f"Talk. {PROSE}", namespace=1),
        _page("A stub is one sentence, as short as this one is."),
        _page(f"Two. {PROSE}"),
    ]
    dump = (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    )
    content = bz2.compress(dump.encode()) if ending == "xml.bz2" else dump
    documents = _read(path=_write(tmp_path / f"dump.{ending}", content))
    assert documents == [f"One is linked. {PROSE}".strip(), f"Two. {PROSE}".strip()]
