"""Read the documents or the rows of one local file."""

from __future__ import annotations

import ast
import bz2
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow
import pyarrow.parquet

from keepset.errors import TextError
from keepset.text.wikitext import to_prose

MIN_ARTICLE = 500
"""A MediaWiki page with fewer characters of prose is a stub and is left out."""

_FORMATS = {
    ".txt": "text",
    ".rst": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".py": "python",
    ".xml": "mediawiki",
    ".bz2": "mediawiki",
}


def format_of(path: Path, declared: str, label: str) -> str:
    """The format of `path`: `declared`, or by its suffix where `declared` is "auto".

    Raises:
        TextError: the suffix is unknown.
    """
    if declared != "auto":
        return declared
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise TextError(
            f"{label}: cannot tell the format of {path} by its suffix; set format"
        ) from None


def documents(path: Path, declared: str, label: str) -> Iterator[str]:
    """The documents of a file that has no rows; see `records` for files of rows.

    Raises:
        TextError: the file cannot be read as its format.
    """
    return _READERS[format_of(path, declared, label)](path, label)


def records(
    path: Path, declared: str, fields: tuple[str, ...], label: str
) -> Iterator[tuple[str, ...]]:
    """The values of `fields` in each row of a jsonl or parquet file.

    Raises:
        TextError: the file cannot be read, a row is not a mapping, or a field is not text.
    """
    reader = _jsonl_rows if format_of(path, declared, label) == "jsonl" else _parquet_rows
    for number, row in reader(path, fields, label):
        yield pick(row, fields, f"{label}: {path}, row {number}")


def pick(row: Any, fields: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The text of `fields` in `row`; a null is an empty text.

    Raises:
        TextError: a field is missing or is not text; the message starts with `where`.
    """
    if not isinstance(row, dict):
        raise TextError(f"{where}: a row must be a mapping, got {type(row).__name__}")
    for field in fields:
        if field not in row:
            raise TextError(f"{where}: no field {field!r}; the fields are: {', '.join(row)}")
        if not isinstance(row[field], str | None):
            raise TextError(f"{where}: field {field!r} is not text but {type(row[field]).__name__}")
    return tuple(row[field] or "" for field in fields)


def read_text(path: Path, label: str) -> str:
    """The text of a UTF-8 file, with "\\n" as line end and without a byte order mark.

    Raises:
        TextError: the file cannot be read, is binary, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TextError(f"{label}: cannot read {path}: {error.strerror}") from None
    return _decode(data, path, label)


def _decode(data: bytes, path: Path, label: str) -> str:
    if b"\0" in data:
        raise TextError(f"{label}: {path} is a binary file; give a text file, or set format")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{label}: {path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _text_file(path: Path, label: str) -> Iterator[str]:
    text = read_text(path, label)
    if not text.strip():
        raise TextError(f"{label}: {path} is empty")
    yield text


def _python_module(path: Path, label: str) -> Iterator[str]:
    # An empty __init__.py is normal, so it is no error; the caller drops it.
    yield read_text(path, label)


def _pydoc_topics(path: Path, label: str) -> Iterator[str]:
    """The values of the dict `topics` that a module assigns; the module is not run."""
    try:
        body = ast.parse(read_text(path, label)).body
        values = [
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics"
        ]
    except (SyntaxError, ValueError) as error:
        raise TextError(f"{label}: {path} is not a module of literals: {error}") from None
    if not values or not isinstance(values[0], dict):
        raise TextError(f"{label}: {path} assigns no dict named topics (format: pydoc)")
    yield from (str(topic) for topic in values[0].values())


def _jsonl_rows(path: Path, _: tuple[str, ...], label: str) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if text := _decode(line, path, f"{label}, line {number}").strip():
                    yield number, json.loads(text)
    except OSError as error:
        raise TextError(f"{label}: cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise TextError(f"{label}: {path}, line {number} is not JSON: {error}") from None


def _parquet_rows(
    path: Path, fields: tuple[str, ...], label: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            pick(dict.fromkeys(table.schema_arrow.names), fields, f"{label}: {path}")
            for batch in table.iter_batches(batch_size=1024, columns=list(fields)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise TextError(f"{label}: cannot read {path} as Parquet: {error}") from None


def _mediawiki_articles(path: Path, label: str) -> Iterator[str]:
    """Stream the prose of each article of a MediaWiki XML export, without redirects."""
    try:
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as dump:
            events = ElementTree.iterparse(dump, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and element.tag.endswith("page"):
                    if len(prose := to_prose(_article_markup(element))) >= MIN_ARTICLE:
                        yield prose
                    root.clear()
    except (OSError, EOFError, ElementTree.ParseError) as error:
        raise TextError(f"{label}: cannot read {path} as a MediaWiki export: {error}") from None


def _article_markup(page: ElementTree.Element) -> str:
    is_article = page.findtext("{*}ns", "0") == "0" and page.find("{*}redirect") is None
    return (page.findtext("{*}revision/{*}text") or "") if is_article else ""


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    "text": _text_file,
    "python": _python_module,
    "pydoc": _pydoc_topics,
    "mediawiki": _mediawiki_articles,
}
