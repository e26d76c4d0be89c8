"""Which token stands before a text: what the tokenizer adds, what a model needs, what is set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared import prepared
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset import models
from keepset.errors import ModelError
from keepset.models.bos import bos_token

Wrapping = Callable[[str], PreTrainedTokenizerFast]


@pytest.fixture
def wrapping(tiny_tokenizer: PreTrainedTokenizerFast) -> Wrapping:
    """`wrapping(template)`: a tokenizer that puts what the template says around a text."""

    def make(template: str) -> PreTrainedTokenizerFast:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        special = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("<bos>", "<eos>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
        return tokenizer

    return make


@pytest.mark.parametrize(
    ("template", "setting", "expected"),
    [
        ("$A", "auto", None),
        ("<bos> $A", "auto", 1),
        ("<bos> $A <eos>", "auto", 1),
        ("$A <eos>", "auto", None),
        ("<eos> $A", "auto", 2),  # whatever it is called
        ("<bos> $A", False, None),
        ("$A", True, 1),
    ],
)
def test_what_stands_before_a_text(
    wrapping: Wrapping, template: str, setting: Any, expected: int | None
) -> None:
    assert bos_token(wrapping(template), "llama", setting) == expected


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_has_one_whatever_its_tokenizer_adds(wrapping: Wrapping, model_type: str) -> None:
    assert bos_token(wrapping("$A"), model_type) == 1
    assert bos_token(wrapping("$A"), model_type, False) is None


def test_a_vocabulary_without_common_letters(wrapping: Wrapping) -> None:
    tokenizer = wrapping("<bos> $A <eos>")
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "Z": 3}
    tokenizer.backend_tokenizer.model = type(tokenizer.backend_tokenizer.model)(vocabulary, [])
    assert tokenizer("a").input_ids == [1, 2]
    assert bos_token(tokenizer, "llama") == 1


@pytest.mark.parametrize(("model_type", "setting"), [("llama", True), ("gemma", "auto")])
def test_a_tokenizer_without_one(wrapping: Wrapping, model_type: str, setting: Any) -> None:
    tokenizer = wrapping("$A")
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match=r"models\.m\.bos: a BOS is needed .*set bos: false"):
        bos_token(tokenizer, model_type, setting, where="models.m.bos")
    assert bos_token(tokenizer, model_type, False) is None


def test_several_tokens_before_a_text(wrapping: Wrapping) -> None:
    with pytest.raises(ModelError, match=r"2 tokens before a text \(<bos> <eos>\)"):
        bos_token(wrapping("<bos> <eos> $A"), "glm")


@pytest.mark.parametrize(("setting", "expected"), [("auto", 1), (True, 1), (False, None)])
def test_a_prepared_model_says_its_bos(
    wrapping: Wrapping,
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    setting: Any,
    expected: int | None,
) -> None:
    models.save(tiny_model("llama"), wrapping("<bos> $A"), tmp_path / "mine")
    info = prepared(tmp_path / "mine", bos=setting)
    assert info["bos"] == expected
    assert info["source"]["bos"] == setting
