"""Load a model from wherever it is, in one call, without a configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset.models import loading
from keepset.models.devices import resolve_device, resolve_dtype
from keepset.settings import Model

RECIPE = "recipe.yaml"
"""In a folder that `keepset slim` wrote, beside the checkpoint `model`."""


def source_of(
    text: str | Path, *, tokenizer: str | Path | None = None, bos: Literal["auto"] | bool = "auto"
) -> Model:
    """Where a model comes from, as one word says it.

    Args:
        text: A checkpoint folder, or one that `keepset slim` wrote, a .gguf file, PACKAGE:FILE (a
            file inside an installed Python package), or else a Hugging Face hub id.
        tokenizer: A folder or hub id, for a checkpoint without a tokenizer.
        bos: As `bos` of a model in the configuration.
    """
    text = str(text)
    options: dict[str, Any] = {"tokenizer": tokenizer and str(tokenizer), "bos": bos}
    if text.startswith(("/", ".", "~")) or Path(text).exists():
        slim = Path(text) / "model"
        is_slim = (Path(text) / RECIPE).is_file() and (slim / "config.json").is_file()
        return Model(path=str(slim) if is_slim else text, **options)
    package, colon, file = text.partition(":")
    return Model(package=package, file=file, **options) if colon else Model(hub=text, **options)


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    tokenizer: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer for inference.

    The model is in eval mode, and no parameter requires a gradient. GGUF files are dequantised,
    and checkpoints are checked first: one that is damaged or incomplete is refused.

    Args:
        source: A checkpoint folder, or one that `keepset slim` wrote, a .gguf file, PACKAGE:FILE,
            or a Hugging Face hub id.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.
        dtype: auto, float32, bfloat16 or float16; auto takes bfloat16 where it is faster.
        tokenizer: A folder or hub id, for a checkpoint without a tokenizer.

    Returns:
        The model and its tokenizer. `keepset.models.bos_token` says which token, if any, is to
        stand before its texts.

    Raises:
        ModelError: the model is missing, incomplete or unknown; the message says what to do.

    Example:
        >>> from keepset import load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> model.config.model_type, model.num_parameters()
        ('opt', 1350656)
    """
    where = resolve_device(device)
    with tempfile.TemporaryDirectory() as folder:
        # The caller decides on a BOS; here it is not to stop a tokenizer that is unclear about it.
        info = loading.prepare("model", source_of(source, tokenizer=tokenizer, bos=False), folder)
        return loading.load(info, where, resolve_dtype(dtype, where))
