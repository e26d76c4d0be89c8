"""How fast a machine is: stated by the user, measured here, or a default."""

from __future__ import annotations

import time

from keepset.errors import ConfigError, ModelError
from keepset.plan.cost import SPEEDS, Kind, Speed

_SIDE = 2048
"""Rows and columns of the matrices that are multiplied to measure a machine."""
_SECONDS = 0.3
"""Shortest duration of a measurement."""


def speed_of(kind: Kind, rate: float | None, bandwidth: float | None, measure: bool) -> Speed:
    """The speed that the command's options ask for: `rate` in TFLOP/s, `bandwidth` in GB/s.

    Raises:
        ConfigError: a speed is both stated and measured, or is not positive.
        ModelError: it cannot be measured, because this machine has no such device.
    """
    if not measure:
        return _stated_speed(kind, rate, bandwidth)
    if rate is not None or bandwidth is not None:
        raise ConfigError("--measure: leave out --rate and --bandwidth, or leave out --measure")
    try:
        return machine_speed(kind)
    except ModelError as error:
        raise ModelError(
            f"{error}; --measure needs the device of the study: run it there, or state --rate"
        ) from None


def _stated_speed(kind: Kind, rate: float | None, bandwidth: float | None) -> Speed:
    for option, value in (("--rate", rate), ("--bandwidth", bandwidth)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} {value:g}: give a positive number")
    default = SPEEDS[kind]
    if rate is None and bandwidth is None:
        return default
    return Speed(
        default.flops if rate is None else rate * 1e12,
        default.bytes if bandwidth is None else bandwidth * 1e9,
        "as stated" if rate and bandwidth else f"as stated; else {default.source}",
    )


def machine_speed(kind: Kind) -> Speed:
    """Measured by multiplying square matrices, and reading memory, for a moment.

    One CPU thread, as the workflow's jobs have; bfloat16 on a GPU, else float32.

    Raises:
        ModelError: this machine has no such device.
    """
    import torch

    from keepset import models
    from keepset.run.job import limit_threads
    from keepset.speed import timing

    device = models.resolve_device(kind)
    limit_threads(1)
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    left, right = (torch.randn(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        multiply()
        count += 1
    rate = count * 2 * _SIDE**3 / (time.perf_counter() - start)
    return Speed(rate, timing.measure(device).bandwidth, "measured here: matrices multiplied, read")
