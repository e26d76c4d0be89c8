"""Read the rows of one local file: JSON, CSV, Parquet, Arrow, or a dataset saved to disk.

The library `datasets` reads a dataset that it has saved. The other readers are here, because of
what its own change: "NA" and dates in a CSV file are no longer text, a field that is missing in a
row is an empty one, and an error does not say in which line it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from keepset.errors import TextError
from keepset.text.streams import decode, opened

_Rows = Iterator[tuple[int, Any]]

_CSV_BLOCK = 64 * 2**20  # bytes; no row of a CSV file may be longer
_BATCH = 1024


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
    texts = tuple(row[field] or "" for field in fields)
    for field, text in zip(fields, texts, strict=True):
        try:
            text.encode()
        except UnicodeEncodeError:
            # JSON can spell half of a character; no tokenizer takes it, and no file can hold it.
            raise TextError(f"{where}: field {field!r} has half of a surrogate pair") from None
    return texts


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by the method `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def saved_rows(folder: Path, fields: tuple[str, ...], split: str | None, label: str) -> _Rows:
    """The numbered rows of a dataset that `datasets` has saved to disk.

    Args:
        folder: what `save_to_disk` wrote.
        fields: the columns to read.
        split: of a dataset with several splits, the one to read.
        label: the configuration key, for messages.

    Raises:
        TextError: the dataset cannot be read, or has no such field or split.
    """
    # Imported here, because it takes seconds and most corpora are local files.
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
        splits = list(dataset) if isinstance(dataset, DatasetDict) else []
        if splits and split not in splits:
            raise TextError(f"{label}: {folder}: set split to one of: {', '.join(splits)}")
        if split is not None and not splits:
            raise TextError(f"{label}: {folder} has no splits; leave split out")
        rows = dataset[split] if splits else dataset
        pick(dict.fromkeys(rows.column_names), fields, f"{label}: {folder}")
        yield from enumerate(rows.select_columns(list(fields)), start=1)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TextError(f"{label}: cannot read {folder} as a saved dataset: {error}") from None


def _json_rows(path: Path, _: tuple[str, ...], label: str) -> _Rows:
    """One row a line; or lists of rows, and rows that are spread over lines."""
    number = 0
    try:
        with opened(path, label) as lines:
            for number, line in enumerate(lines, start=1):
                text = decode(line, path, f"{label}, line {number}").strip()
                if text == "{" or text.startswith("["):
                    rest = decode(lines.read(), path, label)
                    yield from enumerate(_json_values(f"{text}\n{rest}"), start=1)
                    return
                if text:
                    yield number, _json_row(json.loads(text))
    except json.JSONDecodeError as error:
        place = number + error.lineno - 1
        raise TextError(f"{label}: {path}, line {place} is not JSON: {error.msg}") from None


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text = text.rstrip()
    end = 0
    while end < len(text):
        start = len(text) - len(text[end:].lstrip())
        value, end = decoder.raw_decode(text, start)
        yield from map(_json_row, value if isinstance(value, list) else [value])


def _json_row(value: Any) -> Any:
    """A row; of a text alone the one that `datasets` makes of it."""
    return {"text": value} if isinstance(value, str) else value


def _csv_rows(path: Path, fields: tuple[str, ...], label: str) -> _Rows:
    """The rows of a CSV file with a header; tabs separate the fields of a .tsv file."""
    layout = pyarrow.csv.ParseOptions(
        delimiter="\t" if ".tsv" in map(str.lower, path.suffixes) else ",", newlines_in_values=True
    )
    reading = pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK)
    try:
        with opened(path, label) as file:
            names = pyarrow.csv.open_csv(file, reading, layout).schema.names
        pick(dict.fromkeys(names), fields, f"{label}: {path}")
        converting = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(fields, pyarrow.string()), include_columns=list(fields)
        )
        with opened(path, label) as file:
            yield from _numbered(pyarrow.csv.open_csv(file, reading, layout, converting))
    except pyarrow.ArrowException as error:
        raise TextError(f"{label}: cannot read {path} as CSV: {error}") from None


def _parquet_rows(path: Path, fields: tuple[str, ...], label: str) -> _Rows:
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            pick(dict.fromkeys(table.schema_arrow.names), fields, f"{label}: {path}")
            yield from _numbered(table.iter_batches(batch_size=_BATCH, columns=list(fields)))
    except (OSError, pyarrow.ArrowException) as error:
        raise TextError(f"{label}: cannot read {path} as Parquet: {error}") from None


def _arrow_rows(path: Path, fields: tuple[str, ...], label: str) -> _Rows:
    """The rows of an Arrow file in either of its forms: a stream, or a file with an index."""
    try:
        with pyarrow.memory_map(str(path)) as source:
            indexed = source.read(6) == b"ARROW1"
            source.seek(0)
            if indexed:
                table = pyarrow.ipc.open_file(source)
                batches = map(table.get_batch, range(table.num_record_batches))
            else:
                batches = table = pyarrow.ipc.open_stream(source)
            pick(dict.fromkeys(table.schema.names), fields, f"{label}: {path}")
            slices = (
                batch.select(list(fields)).slice(start, _BATCH)
                for batch in batches
                for start in range(0, batch.num_rows, _BATCH)
            )
            yield from _numbered(slices)
    except (OSError, pyarrow.ArrowException) as error:
        raise TextError(f"{label}: cannot read {path} as Arrow: {error}") from None


def _numbered(batches: Iterable[pyarrow.RecordBatch]) -> _Rows:
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from enumerate(rows, start=1)


READERS: dict[str, Callable[[Path, tuple[str, ...], str], _Rows]] = {
    "jsonl": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "arrow": _arrow_rows,
}
"""Format -> (path, fields, label) -> the numbered rows of a file; a row may have other fields."""
