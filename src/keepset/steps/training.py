"""Training data, made ready, and specimens, trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from keepset import models
from keepset.errors import CacheError
from keepset.files import store
from keepset.files.store import PathLike
from keepset.run import provenance
from keepset.settings import Training, TrainingData
from keepset.text import read_documents
from keepset.text.corpora import join_documents
from keepset.text.recall import prose_sentences
from keepset.train.loop import Trainer
from keepset.train.rows import Rows, TrainingText, encode_documents
from keepset.train.tokenizer import train_tokenizer, wrap_tokenizer

_HELDOUT_ROWS = 8  # per corpus: enough to follow a loss


class _Files:
    """The files of the training data."""

    def __init__(self, folder: PathLike) -> None:
        self.tokenizer = Path(folder) / "tokenizer.json"
        self.text = Path(folder) / "text.safetensors"
        self.sources = Path(folder) / "sources.json"


def prepare_training(
    corpora: Sequence[PathLike],
    sources: Mapping[str, Any],
    training: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Train the tokenizer and tokenize the training text.

    Args:
        corpora: Tables of `prepare_corpus`; of these only calibration text is trained on, and
            held-out text is what the loss is followed on.
        sources: Corpus -> where its text comes from, in the order of `corpora`.
        training: The keys of `TrainingData` in the `training` section of the configuration.
        output: tokenizer.json. text.safetensors (tokens) and sources.json (what was read, and the
            sentences of recall rows) are written beside it.
    """
    files = _Files(Path(output).parent)
    settings = TrainingData.model_validate(training)
    tables = dict(zip(sources, map(pd.read_parquet, corpora), strict=True))
    documents = {name: _split(table, "calibration") for name, table in tables.items()}
    prose = prose_sentences(text for texts in documents.values() for text in texts)
    for name, source in settings.text.items():
        documents[name] = read_documents(source, f"training.text.{name}")
    tokenizer = train_tokenizer(
        (text for texts in documents.values() for text in texts), settings.vocabulary, settings.seed
    )
    repeats = dict(settings.corpora) | {
        name: source.repeats for name, source in settings.text.items()
    }
    encoded = encode_documents(documents, repeats, prose, tokenizer)
    heldout = [
        _rows(join_documents(_split(table, "heldout")), tokenizer, settings.sequence)
        for table in tables.values()
    ]
    with store.replacing(files.tokenizer) as temporary:
        tokenizer.backend_tokenizer.save(str(temporary))
    arrays = {
        "tokens": encoded.tokens,
        "bounds": encoded.bounds,
        "repeats": encoded.repeats,
        "heldout": np.concatenate(heldout),
    }
    with store.replacing(files.text) as temporary:
        save_file(arrays, temporary)
    counts = {
        name: {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "repeats": repeats[name],
        }
        for name, texts in documents.items()
    }
    summary = {
        "sources": counts,
        "prose": prose,
        "epoch_tokens": encoded.epoch_tokens,
        "unique_tokens": len(encoded.tokens),
    }
    store.write_json(summary, files.sources)


def train_specimen(
    name: str,
    training: Mapping[str, Any],
    tokens: PathLike,
    device: str,
    dtype: str,
    output: PathLike,
    until: int | None = None,
) -> None:
    """Train one specimen and write weights, configuration, tokenizer and loss curve.

    Args:
        name: The specimen, a key of training.specimens.
        training: The `training` section of the configuration.
        tokens: text.safetensors, as `prepare_training` wrote it beside its other files.
        device: auto, cpu, cuda or cuda:N.
        dtype: The number format of autocast; auto is bfloat16 where it is faster.
        output: The checkpoint folder, float32; beside it stand losses.parquet, losses.json and
            the checkpoint that an interrupted training resumes from.
        until: Stop after this step, with a checkpoint and without output.
    """
    settings, data = Training.model_validate(training), Path(tokens).parent
    tokenizer = load_tokenizer(data)
    rows, heldout = load_rows(settings, tokenizer, data)
    where = models.resolve_device(device)
    number = models.resolve_dtype(dtype, where)
    specimen = settings.specimens[name]
    trainer = Trainer(name, specimen, settings, rows, tokenizer, heldout, where, number)
    folder = Path(output).parent
    losses = trainer.run(folder, until)
    if trainer.step < settings.steps:
        return
    facts = {
        **provenance.environment(),
        "device": str(where),
        "dtype": str(number),
        "steps": settings.steps,
        "tokens": settings.steps * rows.batch_tokens,
        "seconds": trainer.seconds,
        "seed": settings.seed,
        "induction": specimen.induction,
        "architecture": type(trainer.model).__name__,
        "data": _describe_data(data, settings),
        "text_nll": _last_text_nll(losses),
        "n_parameters": trainer.model.num_parameters(),
    }
    store.write_table(losses, folder / "losses.parquet", facts)
    models.save(trainer.model, tokenizer, output)


def _describe_data(data: PathLike, settings: Training) -> str:
    """What was trained on, in words."""
    sources = store.read_json(_Files(data).sources)["sources"]
    parts = ", ".join(
        f"{name} ({read['documents']} documents, {read['characters'] / 1e6:.1f} million characters,"
        f" read {read['repeats']} times per epoch)"
        for name, read in sources.items()
    )
    recall = settings.recall
    return (
        f"{parts}; mixed with in-context recall of 1 to {recall.facts} facts"
        f" ({recall.share:.0%} of the rows, all of them at the start)"
    )


def _last_text_nll(losses: pd.DataFrame) -> float:
    """Mean text loss of the last ten points of the training curve, in nats per token."""
    text = losses.loc[losses["split"] == "training", "text_nll"].dropna()
    return float(text.tail(10).mean())


def load_tokenizer(data: PathLike) -> PreTrainedTokenizerFast:
    """The shared tokenizer, as transformers uses it."""
    return wrap_tokenizer(Tokenizer.from_file(str(_Files(data).tokenizer)))


def load_rows(
    settings: Training, tokenizer: PreTrainedTokenizerFast, data: PathLike
) -> tuple[Rows, torch.Tensor]:
    """The rows that specimens are trained on, and the rows that their loss is followed on.

    Raises:
        CacheError: a file is damaged.
    """
    files = _Files(data)
    try:
        arrays = load_file(files.text)
        prose = store.read_json(files.sources)["prose"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CacheError(f"{data}: damaged training data ({error}); delete and remake it") from None
    text = TrainingText(arrays["tokens"], arrays["bounds"], arrays["repeats"], tuple(prose))
    rows = Rows(
        text,
        tokenizer,
        settings.recall,
        rows=settings.batch,
        sequence=settings.sequence,
        steps=settings.steps,
        seed=settings.seed,
    )
    return rows, torch.from_numpy(arrays["heldout"].astype(np.int64))


def _split(table: pd.DataFrame, split: str) -> list[str]:
    return table.loc[table["split"] == split, "text"].tolist()


def _rows(text: str, tokenizer: PreTrainedTokenizerFast, sequence: int) -> np.ndarray:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    n = min(_HELDOUT_ROWS, len(ids) // sequence)
    return np.array(ids[: n * sequence], dtype=np.uint16).reshape(n, sequence)
