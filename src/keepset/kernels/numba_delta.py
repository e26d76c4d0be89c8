"""The gated delta rule on one thread of a CPU, compiled by numba, in float32.

H(t) = H(t-1) exp(g(t)), then H(t) += b(t) (v(t) - H(t) k(t)) k(t)^T, and y(t) = H(t) q(t) / sqrt(n)
(arXiv:2412.06464), token after token. In the letters of `keepset.kernels.numba_scan` x, B, C and
the step are v, k, q / sqrt(n) and b; sizes and windows are computed there. Plain references are
transformers' own functions and `keepset.hold.memories.delta.DeltaRecurrence`. Importing this module
needs numba (`keepset.kernels.numba_jit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepset.kernels import numba_state as loops
from keepset.kernels.naive import normalised
from keepset.kernels.numba_scan import Inputs, array, needs_torch


def inputs(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, normalise: bool
) -> Inputs:
    """What the kernels read, from the arguments of `delta_rule`."""
    units = [normalised(part.float()) if normalise else part.float() for part in (query, key)]
    reads, writes = units[0] / math.sqrt(query.shape[-1]), units[1]
    return Inputs(
        x=array(value),
        step=array(beta),
        decay=array(g.float().exp()),
        B=array(writes),
        C=array(reads),
        D=np.zeros(value.shape[2], np.float32),
        corrects=True,
    )


def delta_rule(original: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A function with the arguments of transformers' `torch_chunk_gated_delta_rule`, `original`.

    Gradients, float64 and packed sequences are left to `original`.
    """

    def passage(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        tensors = (query, key, value, g, beta)
        if needs_torch(*tensors) or options.get("cu_seqlens") is not None:
            return original(
                *tensors, initial_state=initial_state, output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **options,
            )  # fmt: skip
        (batch, _, groups, n), (heads, head_dim) = key.shape, value.shape[2:]
        state = np.zeros((batch, groups, heads // groups, head_dim, n), np.float32)
        if initial_state is not None:
            state[:] = array(initial_state.transpose(2, 3)).reshape(state.shape)
        given = inputs(*tensors, use_qk_l2norm_in_kernel)
        y = torch.empty(value.shape, dtype=torch.float32)
        loops.dense_delta(given.x, given.step, given.decay, given.B, given.C, state, y.numpy())
        if not output_final_state:
            return y.to(query.dtype), None
        last = torch.from_numpy(state).view(batch, heads, head_dim, n).transpose(2, 3)
        return y.to(query.dtype), last.contiguous()

    return passage
