"""Rows of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.rows import is_saved_dataset, pick


def hub_records(
    source: TextSource, fields: tuple[str, ...], label: str
) -> Iterator[tuple[str, ...]]:
    """The values of `fields` in each row of a hub dataset, or of a local folder in that form.

    `datasets` reads data files only; it refuses a dataset that needs a Python script.

    Raises:
        TextError: the dataset cannot be reached or read, or a field is missing or not text.
    """
    # Imported here, because it takes seconds and most corpora are local files.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = f"{label}: {source.hub}, split {source.split}"
    if is_saved_dataset(Path(source.hub or "").expanduser()):
        raise TextError(f"{where}: this dataset was saved to disk; give it as path, not as hub")
    try:
        dataset = load_dataset(
            source.hub,
            name=source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
        if dataset.column_names is not None:
            pick(dict.fromkeys(dataset.column_names), fields, where)
            dataset = dataset.select_columns(list(fields))
        for number, row in enumerate(dataset, start=1):
            yield pick(row, fields, f"{where}, row {number}")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise TextError(f"{where}: {error}\n{_advice(source)}") from error


def _advice(source: TextSource) -> str:
    if source.streaming:
        return (
            "Check hub, config, split and revision. Without a network: run `hf download"
            f" --repo-type dataset {source.hub} --local-dir FOLDER` on a machine with a network,"
            " and set hub to FOLDER."
        )
    arguments: list[Any] = [source.hub, *([source.config] if source.config else [])]
    call = f"load_dataset({', '.join(map(repr, arguments))})"
    return (
        "Check hub, config, split and revision. Without a network: run"
        f' `python -c "from datasets import load_dataset; {call}"` on a machine with a network,'
        " with the same HF_HOME."
    )
