"""Which implementation runs: what was chosen, what can run where, what was timed and refused.

    Selection("torch")                                        plain torch everywhere
    Selection(Kernels(ffn="triton", state="mamba-ssm"))       by name
    Selection("auto", forced=["held"])                        this path, untimed

`Kernels` is the section `kernels` of the configuration. A decoding run, or a runner, owns one
`Selection`; those that are given the same one share what it has timed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from keepset.errors import ConfigError, KernelError
from keepset.kernels.clock import Candidate, seconds, time_rounds
from keepset.settings import Kernels

logger = logging.getLogger("keepset")

TRITON_FFN, TRITON_DOWN = "triton-ffn", "triton-down"
"""Paths by Triton kernels: of a whole feed-forward block, and of its down projection."""

WORDS = ("auto", "torch", "numba", "triton")
"""Choices that one word stands for."""

NUMBA = "numba"
"""The choice of kernels that numba compiles, for the CPU."""

Key = tuple[Hashable, ...]
"""What times hold for: shape, rows, share kept, dtype, device, threads."""

_ROUNDS = 7
# A wrong kernel is wrong by much more. In half precision a score has so few digits that one in a
# hundred kept units may be another: a kernel rounds h once, torch after every operation.
_AGREES = {torch.float64: 1e-6, torch.float32: 1e-3}
_AGREES_LOW_PRECISION = 0.3


def as_kernels(kernels: Kernels | str) -> Kernels:
    """A choice from one of `WORDS`; what it has no kernel for stays auto.

    Raises:
        ConfigError: another word.
    """
    if isinstance(kernels, Kernels):
        return kernels
    if kernels not in WORDS:
        raise ConfigError(f"kernels: {kernels!r} is not known; choose {', '.join(WORDS)}")
    scan = "auto" if kernels == "triton" else kernels
    state = "auto" if kernels == NUMBA else kernels
    return Kernels.model_validate({"ffn": kernels, "scan": scan, "state": state})


class Selection:
    """The implementations that may run, and what is known of them.

    Attributes:
        wanted: The choice.
        forced: Paths that are taken, untimed, where they are among the candidates.
        timing_s: Seconds spent on timing paths; callers that time a whole run subtract them.
        refusals: What was refused so far, with the reason, for the record.
    """

    def __init__(
        self, kernels: Kernels | str = "auto", *, forced: Sequence[str] = (), rounds: int = _ROUNDS
    ) -> None:
        """`kernels`: a choice, or a word for all of it; `rounds` count when paths are timed.

        Raises:
            ConfigError: an unknown word.
        """
        self.wanted = as_kernels(kernels)
        # A path that is chosen by name is taken wherever it works, untimed.
        by_name = {"triton": (TRITON_FFN, TRITON_DOWN), "numba": (NUMBA,)}
        self.forced = (*forced, *by_name.get(self.wanted.ffn, ()))
        self.timing_s = 0.0
        self.refusals: list[str] = []
        self._rounds = rounds
        self._times: dict[Key, dict[str, float]] = {}

    @classmethod
    def of(cls, kernels: Kernels | Selection | str | None) -> Selection:
        """A selection as it is, or a new one from a choice; None is auto."""
        return kernels if isinstance(kernels, Selection) else cls(kernels or "auto")

    def require(self, device: torch.device) -> None:
        """Check that Triton and numba can run on `device` where they are chosen by name.

        Raises:
            ConfigError: names the key and what to install.
        """
        self.may_use_numba("ffn", device)
        self.may_use_numba("scan", device)
        for key in ("ffn", "state"):
            if getattr(self.wanted, key) == "triton" and (reason := why_not_triton(device)):
                raise ConfigError(
                    f"kernels.{key}: {reason}; or choose kernels.{key}: torch or auto"
                )

    def may_use_triton(self, key: Literal["ffn", "state"], device: torch.device) -> bool:
        """Whether Triton's kernels for `key` are among the candidates on `device`."""
        wanted = getattr(self.wanted, key)
        chosen = wanted == "triton" or (wanted == "auto" and device.type == "cuda")
        return chosen and why_not_triton(device) is None

    def may_use_numba(self, key: Literal["ffn", "scan"], device: torch.device) -> bool:
        """Whether numba's kernels for `key` run on `device`; auto takes them where they can.

        Raises:
            ConfigError: they are chosen by name and cannot; names the key and what to do.
        """
        wanted = getattr(self.wanted, key)
        if wanted not in ("auto", NUMBA):
            return False
        reason = why_not_numba(device)
        if reason and wanted == NUMBA:
            raise ConfigError(f"kernels.{key}: {reason}; or choose kernels.{key}: torch or auto")
        return reason is None

    def forced_among(self, candidates: Collection[str]) -> str | None:
        """The candidate that is forced, if any."""
        return next((name for name in self.forced if name in candidates), None)

    def fastest(self, key: Key, candidates: Mapping[str, Candidate]) -> str:
        """The name of the fastest candidate, by `times`; of equals the first wins."""
        if (name := self.forced_among(candidates)) is not None:
            return name
        took = self.times(key, candidates)
        return min(candidates, key=took.__getitem__)

    def fastest_ffn(self, key: Key, candidates: Mapping[str, Candidate]) -> str:
        """The fastest path of a feed-forward block; Triton's only where they work.

        Every candidate must return its output.
        """
        foreign = {TRITON_FFN, TRITON_DOWN}
        if (name := self.forced_among(candidates)) is not None and name not in foreign:
            return name
        working = self.working(candidates, foreign)
        return next(iter(working)) if len(working) == 1 else self.fastest(key, working)

    def times(self, key: Key, candidates: Mapping[str, Candidate]) -> Mapping[str, float]:
        """The seconds that each candidate takes (`clock.time_rounds`); each key is timed once."""
        if key not in self._times:
            start = seconds()
            self._times[key] = time_rounds(candidates, self._rounds)
            self.timing_s += seconds() - start
        return self._times[key]

    def crossovers_ms(self) -> dict[str, dict[str, float]]:
        """Everything timed so far, for the record: key -> candidate -> best milliseconds."""
        return {
            " ".join(map(str, key)): {name: round(1e3 * took, 4) for name, took in best.items()}
            for key, best in self._times.items()
        }

    def working(
        self, candidates: Mapping[str, Candidate], foreign: Collection[str]
    ) -> dict[str, Candidate]:
        """The candidates but those of `foreign` that fail, or give another answer than the rest.

        A candidate is run once, with the argument 0, and its output compared with that of the
        first one that is not foreign. What fails is logged once, and is among `refusals`.
        """
        tried = [name for name in candidates if name in foreign]
        if not tried:
            return dict(candidates)
        with torch.inference_mode():
            expected = next(run for name, run in candidates.items() if name not in foreign)(0)
            failed = {name for name in tried if not self._works(name, candidates[name], expected)}
        return {name: run for name, run in candidates.items() if name not in failed}

    def _works(self, name: str, run: Candidate, expected: Tensor) -> bool:
        try:
            gap = float((run(0).double() - expected.double()).norm())
        except Exception as error:  # a compiler, a driver or a kernel that refuses: torch can go on
            self.refuse(name, f"{type(error).__name__}: {error}")
            return False
        size = float(expected.double().norm())
        if gap <= _AGREES.get(expected.dtype, _AGREES_LOW_PRECISION) * size:
            return True
        self.refuse(name, f"its result is off by {gap:.2g} where torch's has the size {size:.2g}")
        return False

    def refuse(self, path: str, reason: str) -> None:
        """Note that `path` cannot run, and say so once."""
        text = f"{path}: {reason}"
        if text not in self.refusals:
            logger.warning("%s; torch runs in its place", text)
            self.refusals.append(text)


def why_not_numba(device: torch.device) -> str | None:
    """Why numba's kernels cannot run on `device`; None where they can."""
    if device.type != "cpu":
        return f"numba's kernels run on CPUs, not on {device.type}"
    try:
        import keepset.kernels.numba_jit  # noqa: F401  (imported at its first use)
    except KernelError as error:
        return str(error)
    return None


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
