from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import ModelError
from keepset.files import store
from keepset.steps.prepare import prepare_model, tokenize_corpus
from keepset.text import load_blocks

CUTTING = {"sampling": "documents", "sameness_tokens": 96, "factors": [1, 2], "seed": 1}


def tokenize(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    *,
    bos: bool = False,
    block: int = 16,
) -> Path:
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    source = {"path": str(folder / "checkpoint"), "bos": bos}
    prepare_model("m", source, folder / "model.json")
    rows = [(split, number, text) for split in ("calibration", "evaluation") for number in range(3)]
    table = pd.DataFrame(rows, columns=["split", "document", "text"])
    store.write_table(table, folder / "corpus.parquet", {})
    lengths = {"block": block, "calibration_tokens": 64, "evaluation_tokens": 64}
    output = folder / "blocks.safetensors"
    inputs = folder / "corpus.parquet", folder / "model.json"
    tokenize_corpus("c", *inputs, lengths, CUTTING, output)
    return output


@pytest.mark.parametrize("bos", [True, False])
def test_blocks_know_the_models_bos_token(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    bos: bool,
) -> None:
    output = tokenize(tmp_path, tiny_model("llama"), tiny_tokenizer, "A fox ran. " * 40, bos=bos)
    blocks = load_blocks(output)
    assert blocks.bos == (tiny_tokenizer.bos_token_id if bos else None)
    assert set(blocks.n_tokens.tolist()) == {16 if bos else 15}
    assert (blocks.n_core, len(blocks.evaluation), [*blocks.longer]) == (4, 6, [1, 2])


def test_a_token_without_an_embedding_is_refused_when_text_is_cut(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama")
    rows = model.config.vocab_size
    tokenizer = copy.deepcopy(tiny_tokenizer)
    added = [f"[T{number}]" for number in range(rows + 1 - len(tokenizer))]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    text = "A fox ran " + f"past {added[-1]} and on. " * 40
    message = rf"corpora\.c: token id {rows} \('.*'\) is beyond the {rows} rows .* models\.m;"
    with pytest.raises(ModelError, match=message):
        tokenize(tmp_path, model, tokenizer, text)
    assert not (tmp_path / "blocks.safetensors").exists()


@pytest.mark.parametrize("bos", [True, False])
def test_a_block_beyond_the_positions_is_refused_when_text_is_cut(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    bos: bool,
) -> None:
    model = tiny_model("llama", max_position_embeddings=32)
    inputs = tmp_path, model, tiny_tokenizer, "A fox ran. " * 40
    longest = 31 if bos else 32
    assert tokenize(*inputs, bos=bos, block=longest).exists()
    with pytest.raises(ModelError, match=r"models\.m: blocks of 33 tokens .* 32 positions; lower"):
        tokenize(*inputs, bos=bos, block=longest + 1)
