"""Which token stands before a model's text: its BOS (beginning of sequence), or none."""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

from keepset.errors import ModelError


def bos_token(
    tokenizer: Any, model_type: str, setting: Literal["auto"] | bool = "auto", *, where: str = "bos"
) -> int | None:
    """The token that is put before every text a model reads.

    Args:
        tokenizer: The model's tokenizer.
        model_type: Its `config.model_type`.
        setting: False: none. True: the tokenizer's bos_token. auto: the token that the tokenizer
            itself puts before a text, if any, and for the Gemma family always its bos_token, as
            EleutherAI's evaluation harness does: Gemma's perplexity is several times as high
            without.
        where: The configuration key that error messages begin with.

    Returns:
        The token's id; None: text begins with its own first token.

    Raises:
        ModelError: a BOS is asked for and the tokenizer has none, or the tokenizer puts several
            tokens before a text.
    """
    if setting == "auto" and "gemma" not in model_type:
        return added_before(tokenizer, where)
    if setting is False:
        return None
    if tokenizer.bos_token_id is None:
        raise ModelError(
            f"{where}: a BOS is needed ({_why(model_type, setting)}), and the tokenizer has no"
            " bos_token; name one in tokenizer_config.json, or set bos: false"
        )
    return int(tokenizer.bos_token_id)


def _why(model_type: str, setting: Literal["auto"] | bool) -> str:
    return "bos: true" if setting is True else f"model type {model_type}"


def added_before(tokenizer: Any, where: str = "bos") -> int | None:
    """The token that a tokenizer by itself puts before a text, or None.

    Raises:
        ModelError: it puts several there.
    """
    text, plain = _some_text(tokenizer)
    ids = tokenizer(text, verbose=False)["input_ids"]
    starts = range(len(ids) - len(plain) + 1)
    first = next((n for n in starts if ids[n : n + len(plain)] == plain), 0)
    if first > 1:
        raise ModelError(
            f"{where}: the tokenizer puts {first} tokens before a text"
            f" ({' '.join(tokenizer.convert_ids_to_tokens(ids[:first]))}), and one is supported;"
            " set bos: true for its bos_token alone, or bos: false"
        )
    return int(ids[0]) if first else None


def _some_text(tokenizer: Any) -> tuple[str, list[int]]:
    """A text that this tokenizer makes tokens of, and these without any that it adds."""
    # Not every vocabulary has every letter.
    special = set(tokenizer.all_special_tokens)
    for text in chain(("a",), (word for word in tokenizer.get_vocab() if word not in special)):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ids:
            return text, list(ids)
    return "", []
