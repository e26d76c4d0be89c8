"""How much memory a piece of work takes at its peak, on the GPU or on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keepset.calibrate.channels import Scorer


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still alive.

    What a kernel allocates for itself and frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        known = {self._pointer(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and self._pointer(tensor) not in known:
                self._add(tensor.untyped_storage())
        return result

    @staticmethod
    def _pointer(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, pointer: int, size: int) -> None:
        self._seen.discard(pointer)
        self.now -= size


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that `work` holds at its peak, beyond what was there before.

    On a GPU the allocator counts; on a CPU the tensors that operations return are counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Live() as live:
        work()
    return live.peak


def memory_table(scorer: Scorer, blocks: Tensor, identity: Mapping[str, Any]) -> pd.DataFrame:
    """Peak memory of a plain forward pass, of GHOST's and of Taylor's scoring.

    Args:
        scorer: The model; its own calibration text is not used.
        blocks: (n, tokens) int64; measured on one block and on two, one batch each.
        identity: Leading columns.

    Returns:
        The `memory` table of docs/METHODS.md: method, peak_bytes (beyond the weights), n_tokens.
    """
    rows = []
    device = next(scorer.model.parameters()).device
    for n in (1, 2):
        part = blocks[:n]
        n_tokens = part.numel()
        part_scorer = Scorer(scorer.model, scorer.sites, part, n_tokens)

        def forward(part: Tensor = part) -> None:
            with torch.inference_mode():
                scorer.model.base_model(input_ids=part.to(device), use_cache=False)  # type: ignore[operator]

        work: dict[str, Callable[[], Any]] = {
            "forward": forward,
            "ghost": part_scorer.one_shot,
            "taylor": part_scorer.gradients,
        }
        for method, do in work.items():
            peak = peak_bytes(do, device)
            rows.append({**identity, "method": method, "peak_bytes": peak, "n_tokens": n_tokens})
    return pd.DataFrame(rows)
