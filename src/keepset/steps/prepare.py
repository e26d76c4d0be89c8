"""Models, and corpora in one model's tokens, made ready."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import models, text
from keepset.errors import ModelError
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

    Raises:
        ModelError: the model has too few positions for a block, or no embedding for a token.
        TextError: there is too little text.
    """
    info, table = store.read_json(model), pd.read_parquet(corpus)
    owner, bos, positions = f"models.{info['name']}", info["bos"], info["max_positions"]
    if positions is not None and (length := lengths["block"] + (bos is not None)) > positions:
        raise ModelError(
            f"{owner}: blocks of {length} tokens{' with the BOS' if bos is not None else ''} are"
            f" too long for a model of {positions} positions; lower text.block"
        )
    tokenizer = models.load_tokenizer(info)
    how = text.Cutting(**cutting, bos=bos)
    blocks = text.make_blocks(name, table, tokenizer, **lengths, cutting=how)
    passages = (blocks, *blocks.longer.values())
    ids = [blocks.calibration, *(part for p in passages for part in (p.lead_in, p.evaluation))]
    if (highest := max(int(part.max()) for part in ids)) >= info["vocab_size"]:
        raise ModelError(
            f"corpora.{name}: token id {highest} ({tokenizer.decode([highest])!r}) is beyond the"
            f" {info['vocab_size']} rows of the embedding of {owner}; take what gives it out of the"
            " text, or use the model's own tokenizer"
        )
    text.save_blocks(blocks, output)
