"""Corpora and tasks, made ready. No model is needed, so none of its libraries is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import text
from keepset.files import store
from keepset.files.store import PathLike
from keepset.settings import Corpus, Task


def prepare_corpus(name: str, source: Mapping[str, Any], seed: int, output: PathLike) -> None:
    """Read a corpus and split it into calibration, evaluation and held-out text."""
    table = text.prepare_corpus(name, Corpus.model_validate(source), seed)
    store.write_table(table, output, {"corpus": dict(source), "seed": seed})


def prepare_task(
    name: str,
    task: Mapping[str, Any],
    corpora: Sequence[PathLike],
    seed: int,
    output: PathLike,
) -> None:
    """Load the items of a task, or build them from `corpora`, tables named after their corpus."""
    settings = Task.model_validate(task)
    tables = {Path(path).stem: pd.read_parquet(path) for path in corpora}
    if settings.kind == "built":
        items = text.build_items(name, settings, tables, seed)
    elif settings.kind == "recall":
        items = text.build_recall(name, settings, tables, seed)
    else:
        items = text.load_items(name, settings)
    text.save_items(items, output)
