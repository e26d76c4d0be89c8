"""Time things that do the same work against each other, in one process, with cold weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepset.errors import KeepsetError
from keepset.kernels import clock

Run = Callable[[int], Any]
"""Does the work once; gets the number of the weight copy to work on."""

LEAST_ROUNDS, MOST_ROUNDS = 9, 100
QUANTILES = (0.2, 0.5, 0.8)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
LOW_PRECISION = 5e-3
_DEFAULT_CACHE = 64 << 20


@dataclass(frozen=True)
class Machine:
    """What runs are timed on.

    Attributes:
        device: Where.
        cache: Bytes of the largest cache.
        bandwidth: Bytes per second that a plain sum over more than the cache reads.
    """

    device: torch.device
    cache: int
    bandwidth: float


def machine_of(device: torch.device) -> Machine:
    """Look up the cache of `device`, and measure how fast it reads memory."""
    cache = cache_bytes(device)
    large = torch.ones(max(4 * cache, 128 << 20) // 4, device=device)
    took = sorted(_seconds(large.sum) for _ in range(9))
    return Machine(device, cache, large.numel() * 4 / took[1])


def cache_bytes(device: torch.device) -> int:
    """The largest cache of `device` in bytes; 64 MiB where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    units = {"K": 1 << 10, "M": 1 << 20}
    numbers = [int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units]
    return max(numbers, default=_DEFAULT_CACHE)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu"
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "cpu")


def in_turn(
    runs: Mapping[str, Run], copies: int, machine: Machine, seconds: float
) -> dict[str, np.ndarray]:
    """Time runs that take turns: a machine that is busy now and then slows all of them.

    Before every call the cache is filled with other data, and calls take the copies of the weights
    in turn, so that weights come from memory, as they do when a model decodes. One round warms up.
    On a GPU a run that does not wait for the device is captured as a CUDA graph for each copy, and
    replayed; one that waits is timed as it runs, with its launches. The clock is
    `keepset.kernels.clock.seconds`.

    Args:
        runs: What to time, by name.
        copies: Copies of the weights.
        machine: Where.
        seconds: How long to continue, once there are `LEAST_ROUNDS`.

    Returns:
        Seconds per round, by name; the same rounds for all.
    """
    other = torch.ones(2 * machine.cache // 4, device=machine.device)
    calls = {name: _calls(run, copies, machine.device) for name, run in runs.items()}
    took: dict[str, list[float]] = {name: [] for name in runs}
    end = float("inf")
    for number in range(MOST_ROUNDS + 1):
        for name, call in calls.items():
            other.sum()
            took[name].append(_seconds(call[number % copies]))
        if number == 0:
            end = time.perf_counter() + seconds
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
    return {name: np.array(values[1:]) for name, values in took.items()}


def _calls(run: Run, copies: int, device: torch.device) -> list[Callable[[], Any]]:
    calls: list[Callable[[], Any]] = [partial(run, copy) for copy in range(copies)]
    if device.type != "cuda" or _waits(calls[0]):
        return calls
    return [_captured(call) for call in calls]


def _waits(call: Callable[[], Any]) -> bool:
    """Whether `call` waits for the GPU, as one that reads a count does; it cannot be captured."""
    call()  # what happens at the first call only, such as compilation, does not count
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` as a CUDA graph: launches would outweigh the work of one token."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _seconds(call: Callable[[], Any]) -> float:
    start = clock.seconds()
    call()
    return clock.seconds() - start


def summary(took: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Quantiles of milliseconds, and of the speed-up over dense round by round."""
    low, middle, high = np.quantile(1e3 * took, QUANTILES)
    slow, median, fast = np.quantile(dense / took, QUANTILES)
    return {
        "ms_p20": low,
        "ms_p50": middle,
        "ms_p80": high,
        "dense_ms_p50": float(np.median(1e3 * dense)),
        "speedup_p20": slow,
        "speedup_p50": median,
        "speedup_p80": fast,
        "rounds": len(took),
    }


def must_agree(output: Tensor, expected: Tensor, what: str) -> None:
    """Refuse to time what is wrong.

    Args:
        output: The output of a fast path, in the dtype it runs in.
        expected: The reference, float64.
        what: For the message.

    Raises:
        KeepsetError: the relative root mean square error exceeds 1e-5 (float32), 1e-9 (float64) or
            5e-3 (shorter formats), or a value is not finite.
    """
    error = float((output.double() - expected).norm() / expected.norm())
    limit = TOLERANCE.get(output.dtype, LOW_PRECISION)
    if not error <= limit:
        raise KeepsetError(
            f"{what}: its output is off by {error:.2g} (relative RMS), more than {limit:g}; no time"
            " is reported for a wrong result"
        )
