"""Where in its context a running forward pass stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from keepset.errors import ConfigError
from keepset.hold.inputs import cached_tokens


class Position:
    """The place of the tokens of the forward pass that is running.

    Attributes:
        n_bos: Tokens of a context before its text: 1 where contexts open with a BOS token.
        start: Tokens of the context before them; 0 opens a new context.
        batch: Rows of the batch.
        tokens: New tokens per row.
        passes: Forward passes so far.
    """

    def __init__(self, *, n_bos: int = 0, counting: bool = True) -> None:
        """`counting`: whether what is held depends on every token of the context so far."""
        self.n_bos, self._counting = n_bos, counting
        self.start = self.batch = self.tokens = self.passes = 0

    @property
    def one_token(self) -> bool:
        """Whether one new token of one row continues a context."""
        return self.start > 0 and self.batch == self.tokens == 1

    @property
    def opens(self) -> bool:
        """Whether the pass begins with the first token of a context, which is run dense."""
        return self.start == 0

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep up with every forward pass of `model`.

        A forward pass of the model raises ConfigError where rows are padded: the first token of a
        row is run dense, and windows are counted from it. If tokens are counted, it raises one too
        where the key-value cache does not hold exactly the tokens seen so far: it was cropped, or
        another context took turns.
        """
        handle = model.register_forward_pre_hook(self._on_forward, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _on_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        batch, tokens = (kwargs["inputs_embeds"] if ids is None else ids).shape[:2]
        start = cached_tokens(kwargs)
        if start is None:
            raise ConfigError(
                f"{type(model).__name__}: its cache does not say whether it holds tokens: it"
                " cannot be decoded under a keep rule; passages run under every rule"
            )
        goes_on = start == self.start + self.tokens and batch == self.batch
        if self._counting and start and not goes_on:
            raise ConfigError(
                f"the key-value cache holds {start} tokens of {batch} rows, but the keep sets have"
                f" seen {self.start + self.tokens} of {self.batch}: decode one context after the"
                " other, from its start, without cropping"
            )
        mask = kwargs.get("attention_mask")
        if start == 0 and mask is not None and not bool(mask.all()):
            raise ConfigError(
                "padded rows cannot be decoded under a keep rule: decode rows of equal length"
            )
        self.start, self.batch, self.tokens = start, batch, tokens
        self.passes += 1
