"""Models, corpora and tasks, made ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import models, store, text
from keepset.settings import Corpus, Model, Task

PathLike = str | Path


def prepare_model(name: str, source: Mapping[str, Any], output: PathLike) -> None:
    """Find, check and if need be convert a model; write what later steps need to load it."""
    output = Path(output)
    info = models.prepare(name, Model.model_validate(source), output.parent)
    store.write_json(info, output)


def prepare_corpus(name: str, corpus: Mapping[str, Any], seed: int, output: PathLike) -> None:
    """Read a corpus and split it into calibration, evaluation and held-out text."""
    table = text.prepare_corpus(name, Corpus.model_validate(corpus), seed)
    store.write_table(table, output, {"corpus": dict(corpus), "seed": seed})


def prepare_task(
    name: str,
    task: Mapping[str, Any],
    corpora: Sequence[PathLike],
    seed: int,
    output: PathLike,
) -> None:
    """Load the items of a task, or build them from `corpora`, tables named after their corpus."""
    settings = Task.model_validate(task)
    if settings.kind == "built":
        tables = {Path(path).stem: pd.read_parquet(path) for path in corpora}
        items = text.build_items(name, settings, tables, seed)
    else:
        items = text.load_items(name, settings)
    text.save_items(items, output)


def tokenize_corpus(
    name: str,
    corpus: PathLike,
    model: PathLike,
    lengths: Mapping[str, int],
    evaluation_tokens: int,
    output: PathLike,
) -> None:
    """Cut a corpus into blocks of one model's tokens."""
    blocks = text.make_blocks(
        name,
        pd.read_parquet(corpus),
        models.load_tokenizer(store.read_json(model)),
        lengths["block"],
        lengths["calibration_tokens"],
        evaluation_tokens,
    )
    text.save_blocks(blocks, output)
