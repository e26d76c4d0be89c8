"""What a model can take in: how many positions, and which token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError

# transformers' name first, then MPT's and Whisper's, then those of models with their own code.
_POSITION_KEYS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_target_positions",
    "n_positions",
    "n_ctx",
    "seq_length",
    "max_seq_length",
    "max_sequence_length",
)
# Bloom and Falcon with ALiBi make their biases as long as the text is. MPT's have a fixed length.
_NO_LIMIT = ("bloom",)


def positions_of(config: Any) -> int | None:
    """The longest text, in tokens, that a model's configuration allows; None: no limit stated."""
    text = config.get_text_config()
    if text.model_type in _NO_LIMIT or getattr(text, "alibi", False) is True:
        return None
    stated = (getattr(text, key, None) for key in _POSITION_KEYS)
    return next((n for n in stated if isinstance(n, int) and n > 0), None)


def fits(model: nn.Module, tokens: int) -> bool:
    """Whether text of `tokens` tokens is within the model's positions, if it states any."""
    positions = positions_of(model.config)
    return positions is None or tokens <= positions


def check_length(model: nn.Module, tokens: int, what: str, remedy: str) -> None:
    """Refuse text that is longer than the model's positions.

    Args:
        model: A causal language model; one without a stated limit takes any length.
        tokens: The longest piece of text, in tokens, a BOS included.
        what: What is that long, and `remedy`: what to lower; both for the message.

    Raises:
        ModelError: the text is too long.
    """
    if not fits(model, tokens):
        raise ModelError(
            f"{what} of {tokens} tokens are too long for a model of"
            f" {positions_of(model.config)} positions; lower {remedy}"
        )


def check_ids(model: Any, ids: Tensor | Sequence[int], what: str) -> None:
    """Refuse token ids that the model has no embedding, or no logit, for.

    A tokenizer to which tokens were added is larger than its model. Texts without these tokens are
    no trouble, so it is the ids that are checked.

    Args:
        model: A causal language model.
        ids: Token ids, of any shape.
        what: What they are of, for the message.

    Raises:
        ModelError: an id is beyond the rows, or negative.
    """
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = min(table.weight.shape[0] for table in tables if table is not None)
    values = torch.as_tensor(ids)
    lowest, highest = (int(v) for v in values.aminmax()) if values.numel() else (0, -1)
    if lowest < 0:
        raise ModelError(f"{what}: {lowest} is no token id; ids begin at 0")
    if highest >= rows:
        raise ModelError(
            f"{what}: token id {highest} is beyond the {rows} rows of the model's embedding (ids 0"
            f" to {rows - 1}); the tokenizer has tokens that the model was not trained with: take"
            " them out of the text, or use the model's own tokenizer"
        )
