"""The shared tokenizer."""

import pytest
from transformers import PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.text.recall import NAMES, THINGS
from keepset.train.tokenizer import train_tokenizer


def test_text_comes_back_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "  Naïve — 你好\n\tx = 1"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_it_has_the_entries_asked_for_and_one_special_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert len(tokenizer) == 680
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0


@pytest.mark.parametrize("word", [NAMES[5], THINGS[7], THINGS[-1]])
def test_names_and_things_are_one_token(tokenizer: PreTrainedTokenizerFast, word: str) -> None:
    assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


def test_too_little_text_is_refused() -> None:
    with pytest.raises(TextError, match=r"training\.vocabulary: the text gives only"):
        train_tokenizer(["abc"], 4096, seed=1)
