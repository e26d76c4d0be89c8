"""Read the documents or the rows of one local file."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from keepset.errors import TextError
from keepset.text.rows import READERS, is_saved_dataset, pick, saved_rows
from keepset.text.streams import ENDINGS, opened, read_text
from keepset.text.wikitext import to_prose

MIN_ARTICLE = 500
"""A MediaWiki page with fewer characters of prose is a stub and is left out."""

ROW_FORMATS = frozenset(READERS)

_FORMATS = {
    ".txt": "text",
    ".rst": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".py": "python",
    ".xml": "mediawiki",
}
_HEAD = 2**16  # bytes that are looked at where a file's ending does not say what it is
_WIKITEXT_TITLE = re.compile(r"^ = (?!= ).* = $", re.M)
_WIKITEXT_START = re.compile(r"\s*^ = (?!= ).* = $", re.M)


def format_of(path: Path, declared: str, label: str) -> str:
    """The format of `path`: `declared`, or where that is "auto", by its ending or its content.

    An ending that says how the file is compressed is passed over; a folder is a saved dataset.

    Raises:
        TextError: neither the ending nor the content says what it is.
    """
    if declared != "auto":
        return declared
    if path.is_dir():
        return "arrow"
    endings = [ending for ending in path.suffixes if ending.lower() not in ENDINGS]
    return _FORMATS.get(endings[-1].lower() if endings else "") or _format_inside(path, label)


def _format_inside(path: Path, label: str) -> str:
    with opened(path, label) as file:
        head = file.read(_HEAD)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if re.match(rb"(<\?xml[^>]*>\s*)?<mediawiki\b", start):
        return "mediawiki"
    if re.match(rb'(\[\s*)?\{\s*"', start):
        return "jsonl"
    if b"\0" in head:
        raise TextError(f"{label}: cannot tell the format of {path} by its content; set format")
    return "text"


def documents(path: Path, declared: str, label: str) -> Iterator[str]:
    """The documents of a file that has no rows; see `records` for files of rows.

    Raises:
        TextError: the file cannot be read as its format.
    """
    return _READERS[format_of(path, declared, label)](path, label)


def records(
    path: Path, declared: str, fields: tuple[str, ...], label: str, split: str | None = None
) -> Iterator[tuple[str, ...]]:
    """The values of `fields` in each row of a file of rows, or of a saved dataset.

    Args:
        path: the file, or the folder of a dataset that was saved to disk.
        declared: its format, or "auto".
        fields: the fields to read.
        label: the configuration key, for messages.
        split: of a saved dataset with several splits, the one to read.

    Raises:
        TextError: the file cannot be read, a row is not a mapping, or a field is not text.
    """
    if is_saved_dataset(path):
        rows = saved_rows(path, fields, split, label)
    elif split is not None:
        raise TextError(f"{label}: {path} has no splits; leave split out")
    elif (form := format_of(path, declared, label)) in READERS:
        rows = READERS[form](path, fields, label)
    else:
        raise TextError(f"{label}: {path} has no rows with fields ({form}); give a file of rows")
    for number, row in rows:
        yield pick(row, fields, f"{label}: {path}, row {number}")


def articles(text: str) -> list[str]:
    """The articles of a text, cut at titles in WikiText's form, with no character lost."""
    starts = [match.start() for match in _WIKITEXT_TITLE.finditer(text)]
    # The blank lines before the first title stay with it.
    return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])]


def _text_file(path: Path, label: str) -> Iterator[str]:
    text = read_text(path, label)
    if not text.strip():
        raise TextError(f"{label}: {path} is empty")
    yield from articles(text) if _WIKITEXT_START.match(text) else [text]


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


def _mediawiki_articles(path: Path, label: str) -> Iterator[str]:
    """Stream the prose of each article of a MediaWiki XML export, without redirects."""
    try:
        with opened(path, label) as dump:
            events = ElementTree.iterparse(dump, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and element.tag.endswith("page"):
                    if len(prose := to_prose(_article_markup(element))) >= MIN_ARTICLE:
                        yield prose
                    root.clear()
    except ElementTree.ParseError as error:
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
