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
        batch, _, heads, head_dim = value.shape
        if initial_state is None:
            state = np.zeros((batch, heads, key.shape[-1], head_dim), np.float32)
        else:
            state = array(initial_state).copy()
        y = torch.empty(value.shape, dtype=torch.float32)
        inputs(*tensors, use_qk_l2norm_in_kernel).read(state, y.numpy())
        return y.to(query.dtype), torch.from_numpy(state) if output_final_state else None

    return passage
