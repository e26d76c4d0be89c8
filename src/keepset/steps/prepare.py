"""Models, and corpora in one model's tokens, made ready."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import models, text
from keepset.files import store
from keepset.files.store import PathLike
from keepset.settings import Model


def prepare_model(name: str, source: Mapping[str, Any], output: PathLike) -> None:
    """Find, check and if need be convert a model; write what later steps need to load it."""
    output = Path(output)
    info = models.prepare(name, Model.model_validate(source), output.parent)
    store.write_json(info, output)


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
