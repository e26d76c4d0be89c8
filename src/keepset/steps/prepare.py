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
    cutting: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Cut a corpus into blocks of one model's tokens.

    Args:
        lengths: The arguments of `make_blocks` that say how many tokens.
        cutting: The fields of `Cutting`, without the model's BOS token.
    """
    info, table = store.read_json(model), pd.read_parquet(corpus)
    tokenizer = models.load_tokenizer(info)
    how = text.Cutting(**cutting, bos=info.get("bos"))
    text.save_blocks(text.make_blocks(name, table, tokenizer, **lengths, cutting=how), output)
