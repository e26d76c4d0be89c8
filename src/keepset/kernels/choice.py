"""Which implementation runs: what was chosen, what can run where, and what was refused.

    with choosing("torch"):            plain torch everywhere
    with choosing(Kernels(ffn="triton", state="mamba-ssm")):

`Kernels` is the section `kernels` of the configuration. Outside of any `choosing` all is auto.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from keepset.errors import ConfigError, KernelError
from keepset.kernels import calibrate
from keepset.settings import Kernels

logger = logging.getLogger("keepset")

TRITON_FFN, TRITON_DOWN = "triton-ffn", "triton-down"
"""Paths by Triton kernels: of a whole feed-forward block, and of its down projection."""

WORDS = ("auto", "torch", "triton")
"""Choices that one word stands for."""

_chosen: list[Kernels] = [Kernels()]
_refused: dict[str, None] = {}
# A wrong kernel is wrong by much more. In half precision a score has so few digits that one in a
# hundred kept units may be another: a kernel rounds h once, torch after every operation.
_AGREES = {torch.float64: 1e-6, torch.float32: 1e-3}
_AGREES_LOW_PRECISION = 0.3


def as_kernels(kernels: Kernels | str) -> Kernels:
    """A choice from one of `WORDS`; scans have no Triton kernel here, and stay auto then.

    Raises:
        ConfigError: another word.
    """
    if isinstance(kernels, Kernels):
        return kernels
    if kernels not in WORDS:
        raise ConfigError(f"kernels: {kernels!r} is not known; choose {', '.join(WORDS)}")
    scan = "auto" if kernels == "triton" else kernels
    return Kernels.model_validate({"ffn": kernels, "scan": scan, "state": kernels})


@contextmanager
def choosing(kernels: Kernels | str) -> Iterator[Kernels]:
    """Run with these implementations, whatever held before; taken back on exit.

    Args:
        kernels: A choice, or one of `WORDS` for all of it.

    Raises:
        ConfigError: an unknown word.
    """
    chosen = as_kernels(kernels)
    named = (TRITON_FFN, TRITON_DOWN) if chosen.ffn == "triton" else ()
    _chosen.append(chosen)
    try:
        # A path that is named is taken wherever it works, without a look at the clock.
        with calibrate.forcing(*named):
            yield chosen
    finally:
        _chosen.pop()


def chosen() -> Kernels:
    """The choice that holds now."""
    return _chosen[-1]


def why_not_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on `device`; None where they can."""
    try:
        interpreted = _interpreted()
    except KernelError as error:
        return str(error)
    if device.type == "cuda" or (device.type == "cpu" and interpreted):
        return None
    return (
        f"Triton's kernels run on CUDA GPUs, not on {device.type} (to try them in Triton's"
        " interpreter, which is very slow, set TRITON_INTERPRET=1 before Python starts)"
    )


@cache
def _interpreted() -> bool:
    import keepset.kernels.launch  # noqa: F401  (says what to install where Triton is missing)

    # isort: split
    import triton

    return bool(triton.knobs.runtime.interpret)


def require(device: torch.device) -> None:
    """Check that Triton can run on `device` where it is chosen by name.

    Raises:
        ConfigError: names the key and what to install.
    """
    for key in ("ffn", "state"):
        if getattr(chosen(), key) == "triton" and (reason := why_not_triton(device)):
            raise ConfigError(f"kernels.{key}: {reason}; or choose kernels.{key}: torch or auto")


def ffn_kernels(device: torch.device) -> bool:
    """Whether Triton's paths of feed-forward blocks are among the candidates on `device`."""
    if chosen().ffn == "auto":
        return device.type == "cuda" and why_not_triton(device) is None
    return chosen().ffn == "triton" and why_not_triton(device) is None


def working(
    candidates: Mapping[str, Callable[[int], Any]], foreign: Collection[str]
) -> dict[str, Callable[[int], Any]]:
    """The candidates without those of `foreign` that fail, or give another answer than the rest.

    A candidate is run once, with the argument 0, and its output compared with that of the first
    one that is not foreign. What fails is logged once, and is among `refusals` from then on.
    """
    tried = [name for name in candidates if name in foreign]
    if not tried:
        return dict(candidates)
    with torch.inference_mode():
        expected = next(run for name, run in candidates.items() if name not in foreign)(0)
        failed = {name for name in tried if not _works(name, candidates[name], expected)}
    return {name: run for name, run in candidates.items() if name not in failed}


def _works(name: str, run: Callable[[int], Any], expected: Tensor) -> bool:
    try:
        gap = float((run(0).double() - expected.double()).norm())
    except Exception as error:  # a compiler, a driver or a kernel that refuses: torch can go on
        refuse(name, f"{type(error).__name__}: {error}")
        return False
    size = float(expected.double().norm())
    if gap <= _AGREES.get(expected.dtype, _AGREES_LOW_PRECISION) * size:
        return True
    refuse(name, f"its result is off by {gap:.2g} where torch's has the size {size:.2g}")
    return False


def refuse(path: str, reason: str) -> None:
    """Note that `path` cannot run, and say so once."""
    text = f"{path}: {reason}"
    if text not in _refused:
        logger.warning("%s; torch runs in its place", text)
        _refused[text] = None


def refusals() -> list[str]:
    """What was refused so far, with the reason, for the record."""
    return list(_refused)
