"""How much memory a piece of work takes at its peak, on the GPU or on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and self._pointer(tensor) not in known:
                self._add(tensor.untyped_storage())
        return found

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


@contextmanager
def _counting(device: torch.device, found: list[int]) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with _Live() as live:
        yield
    found.append(live.peak)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that `work` holds at its peak, beyond what was there before.

    On a GPU the allocator counts; on a CPU the tensors that operations return are counted.
    """
    found: list[int] = []
    with _counting(device, found):
        work()
    return found[0]
