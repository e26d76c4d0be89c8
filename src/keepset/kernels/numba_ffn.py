"""Rules on units on a CPU: choice and mask of passages in one go, choice and product of a token.

The plain reference of passages is `keepset.rules.masks` and a product with its masks: it reads and
writes every activation some ten times, here it is twice. That of decoded tokens is `top_units` and
`keepset.kernels.torch_ffn`: at one token each of their operations costs as much as its work. That
of blocks is their own module with masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepset.errors import ModelError
from keepset.kernels.numba_units import (
    ROWS,
    block_tokens,
    down_tokens,
    gate_tokens,
    keep_by_tokens,
    keep_by_windows,
    project_token,
)
from keepset.rules.masks import NOT_A_NUMBER

DTYPES = (torch.float32, torch.bfloat16)
"""What the kernels take."""

ACTIVATIONS = {"relu": True, "silu": False, "swish": False}
"""Names of transformers' activations that the kernels of blocks have -> whether it is ReLU."""

_BITS = {torch.float32: torch.uint32, torch.bfloat16: torch.uint16}
_NONE = np.empty(0, np.float32)


def keep_by_token(h: Tensor, kept: int, norms: Tensor | None, opening: tuple[int, int]) -> Tensor:
    """Zero all but the `kept` largest |h_j|, or |h_j| ||w_j||, of each token.

    Args:
        h: (batch, tokens, n), of `DTYPES`.
        kept: 1 <= kept <= n; ties go to the lowest index.
        norms: ||w_j|| (n,) float32, or None.
        opening: How many tokens of each row come before the text, and how many run dense.

    Returns:
        A new tensor like h.

    Raises:
        ModelError: a score of the text is NaN.
    """
    h = h.contiguous()
    held = torch.empty_like(h)
    if not keep_by_tokens(bits(h), kept, _floats(norms), *opening, bits(held)):
        raise ModelError(NOT_A_NUMBER)
    return held


def keep_by_window(
    h: Tensor, scores: Tensor, kept: int, width: int, opening: tuple[int, int]
) -> Tensor:
    """Zero all but the `kept` best units of each window in its tokens.

    Args:
        h: (batch, tokens, n), of `DTYPES`.
        scores: (batch, n_windows, n) float32, never negative.
        kept: As in `keep_by_token`.
        width: Tokens per window, counted from the first of the text; the last may have fewer.
        opening: As in `keep_by_token`.

    Returns:
        A new tensor like h.

    Raises:
        ModelError: a score is NaN.
    """
    h = h.contiguous()
    held = torch.empty_like(h)
    ranks = scores.contiguous().view(torch.uint32).numpy()
    if not keep_by_windows(bits(h), ranks, kept, width, *opening, bits(held)):
        raise ModelError(NOT_A_NUMBER)
    return held


class TokenDown:
    """What reads the units of a site, a few tokens at a time, on the units that each chooses.

    That is a down projection, or all maps that read one tensor, such as q, k and v, side by side.

    Attributes:
        arguments: What a kernel is given of them.
    """

    def __init__(
        self, rows: Tensor, least: int | float, norms: Tensor | None, bias: Tensor | None
    ) -> None:
        """Prepare a site.

        Args:
            rows: (n, d) neuron-major weights, of `DTYPES`; read at every call.
            least: How many units each token keeps, an int, 1 <= least <= n, where ties go to the
                lowest index; or the least score that is kept, a float.
            norms: ||w_j|| (n,) float32, where units are scored by |h_j| ||w_j||; None: by |h_j|.
            bias: (d,) or None.
        """
        n, self._width = rows.shape
        # 0: not counted
        kept = least if isinstance(least, int) else 0
        choice = (kept, np.float32(0 if kept else least), _floats(norms))
        # Each token's own: nothing of the last one is read.
        scratch = (
            np.empty(n, np.uint32),
            np.empty(n + ROWS, np.int64),
            np.empty(n + ROWS, np.float32),
            np.empty(self._width, np.float32),
        )
        self.arguments = (bits(rows), *choice, _floats(bias), *scratch)

    def __call__(self, h: Tensor) -> Tensor:
        """h (..., n), tokens of the dtype of the weights -> (..., d).

        Raises:
            ModelError: a score is NaN.
        """
        out = h.new_empty(*h.shape[:-1], self._width)
        tokens, results = bits(h).reshape(-1, h.shape[-1]), bits(out).reshape(-1, self._width)
        if not down_tokens(tokens, *self.arguments, results):
            raise ModelError(NOT_A_NUMBER)
        return out


class TokenLinear:
    """A linear map of one token: reads its weights in the order of memory, all of them once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` (outs, ins), of `DTYPES`, is read at every call; `bias` (outs,) or None."""
        self._outs, ins = weight.shape
        self._weight, self._bias = bits(weight), _floats(bias)
        self._x = np.empty(ins, np.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., ins), one token of the dtype of the weights -> (..., outs)."""
        out = x.new_empty(*x.shape[:-1], self._outs)
        project_token(bits(x).reshape(-1), self._weight, self._bias, self._x, bits(out).reshape(-1))
        return out


class TokenBlock:
    """A block as one call: what reads its input, the activation, and what reads its neurons."""

    def __init__(
        self, first: TokenDown, down: TokenDown, starts: Sequence[int], act: str, by_gate: bool
    ) -> None:
        """Join two.

        Args:
            first: What reads the input of the block.
            down: What reads its neurons.
            starts: Where, among the outputs of `first`, those begin that are activated, and those
                that they are multiplied with, if there are any.
            act: One of `ACTIVATIONS`.
            by_gate: Whether neurons are chosen by act(gate), and not by their own size.
        """
        self._first, self._down = first.arguments, down.arguments
        self._rest = (np.array([*starts, -1][:2]), ACTIVATIONS[act], by_gate)
        (n, self._width), kind = self._down[0].shape, self._down[0].dtype
        outs = self._first[0].shape[1]
        self._parts = np.empty(outs, kind), np.empty(n, kind), np.empty(n, kind)

    def __call__(self, x: Tensor) -> tuple[Tensor, int]:
        """Tokens x (..., ins) -> (..., d) and 0, or the site whose scores are NaN: 1 or 2."""
        out = x.new_empty(*x.shape[:-1], self._width)
        tokens, results = bits(x).reshape(-1, x.shape[-1]), bits(out).reshape(-1, self._width)
        wrong = block_tokens(tokens, *self._rest, self._first, self._down, self._parts, results)
        return out, wrong


class GateBlock:
    """A gated block whose gate chooses the neurons: of others, up and down are not read."""

    def __init__(
        self,
        gate: tuple[Tensor, Tensor | None],
        up: tuple[Tensor, Tensor | None],
        down: TokenDown,
        act: str,
    ) -> None:
        """`gate` and `up` are weights (n, ins) and biases, `act` one of `ACTIVATIONS`."""
        weights = [part for weight, bias in (gate, up) for part in (bits(weight), _floats(bias))]
        self._arguments: tuple[Any, ...] = (ACTIVATIONS[act], *weights, down.arguments)
        n, ins = gate[0].shape
        self._width = down.arguments[0].shape[1]
        self._parts = np.empty(ins, np.float32), np.empty(n, self._arguments[1].dtype)

    def __call__(self, x: Tensor) -> tuple[Tensor, int]:
        """Tokens x (..., ins) -> (..., d) and 0, or 2 where a gate is NaN."""
        out = x.new_empty(*x.shape[:-1], self._width)
        tokens, results = bits(x).reshape(-1, x.shape[-1]), bits(out).reshape(-1, self._width)
        arguments = (tokens, *self._arguments, self._parts, results)
        return out, gate_tokens(*arguments)


def _floats(values: Tensor | None) -> np.ndarray:
    """Numbers as float32, or none of them."""
    return _NONE if values is None else values.detach().float().contiguous().numpy()


def bits(values: Tensor) -> np.ndarray:
    """The bits of numbers of `DTYPES`, without a copy: uint32 or uint16."""
    return values.detach().view(_BITS[values.dtype]).numpy()
