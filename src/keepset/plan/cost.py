"""What a job takes: operations, memory, time."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import Literal

from keepset.plan.jobs import Job
from keepset.plan.sizes import Size
from keepset.plan.work import Work, runs_model, work
from keepset.settings import Config

Kind = Literal["cpu", "cuda"]

START_S = 6.0
"""Seconds until a job has imported torch and transformers."""
LOAD = 1e9
"""Bytes of weights read per second."""
MARGIN = 2.0
"""A job may run this many times as long as expected before a scheduler ends it."""
_GRADIENT = 3
"""A forward pass and a backward pass of twice the work."""
_STEP_BYTES = 7 * 4
"""Bytes moved per number of a state and token, where a state is run token by token: decay and
input are read and written, the square too, and its sum is read; float32."""
_BASE = 0.7e9
"""Bytes of a process with torch and transformers; measured, 0.6 GB."""
_BASE_BESIDE_GPU = 3e9
"""The same with CUDA's libraries."""
_CONTEXT = 0.6e9
"""Bytes of GPU memory that a process takes before anything is on it."""
_MASK_BYTES = 16
"""Bytes per neuron and token of scores, their order and the mask."""
_OWN_CHUNK = 64
"""Tokens that keepset's scan for the CPU takes at a time (`keepset.kernels.scan`)."""


@dataclass(frozen=True)
class Speed:
    """How fast a machine is: operations and bytes per second, and where the numbers are from."""

    flops: float
    bytes: float
    source: str


SPEEDS: dict[Kind, Speed] = {
    "cpu": Speed(0.1e12, 10e9, "default of cpu: one core, float32"),
    "cuda": Speed(50e12, 1000e9, "default of cuda: a sixth of an A100's peak in bfloat16"),
}
"""What is assumed where nothing is stated or measured."""


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        tokens: Tokens that pass through the model.
        flops: Floating point operations, at most: what a rule leaves out counts.
        bytes: Bytes moved by states that are run token by token.
        weights: Bytes of weights that are loaded.
        memory: Bytes of main memory at the peak.
        gpu: Bytes of GPU memory at the peak; 0 on a CPU.
    """

    tokens: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    weights: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0

    def seconds(self, speed: Speed) -> float:
        """How long it takes at `speed`."""
        return START_S + self.weights / LOAD + self.flops / speed.flops + self.bytes / speed.bytes


def device_kind(config: Config) -> Kind:
    """Where models run: what `device` says; `auto` takes a GPU where one can be seen."""
    if config.device.startswith("cuda"):
        return "cuda"
    return "cuda" if config.device == "auto" and shutil.which("nvidia-smi") else "cpu"


def cost(config: Config, job: Job, size: Size | None, kind: Kind) -> Cost:
    """What a job takes on `kind` of device.

    Args:
        config: The study.
        job: One of its jobs.
        size: Of the job's model; None for jobs without one.
        kind: Where models run.
    """
    if job.model is None or size is None:
        return Cost(memory=_BASE)
    number = _bytes_per_number(config, job.model, kind)
    weights = size.parameters * number
    if job.rule == "prepare_model":
        # A checkpoint that is converted is in memory twice, in float32 at most.
        twice = 2 * 4 * size.parameters if _is_converted(config, job.model) else 0
        return Cost(memory=_BASE + twice)
    parts = work(config, job, size)
    if not parts:
        # Weights are loaded for correlations too, where nothing passes through them.
        loads = weights if runs_model(job) else 0
        return Cost(weights=loads, memory=_BASE + loads)
    if any(part.float32 for part in parts):
        number, weights = 4, 4 * size.parameters
    peak = weights + max(_activation_bytes(size, part, number, kind) for part in parts)
    return Cost(
        tokens=sum(part.tokens for part in parts),
        flops=sum(_flops(size, part) for part in parts),
        bytes=sum(part.stepped for part in parts) * size.state_numbers * _STEP_BYTES,
        weights=weights,
        memory=_BASE + peak if kind == "cpu" else _BASE_BESIDE_GPU + weights,
        gpu=_CONTEXT + peak if kind == "cuda" else 0.0,
    )


def resources(config: Config, job: Job, size: Size | None, kind: Kind) -> dict[str, int]:
    """What a rule asks a scheduler for.

    Returns:
        mem_mb and gpu_mb in units of 10^6 bytes; runtime in minutes, `MARGIN` times what is
        expected at the default speed. All 0 where the model's size is not known.
    """
    if size is None:
        return {"mem_mb": 0, "runtime": 0, "gpu_mb": 0}
    expected = cost(config, job, size, kind)
    return {
        "mem_mb": math.ceil(expected.memory / 1e6),
        "runtime": math.ceil(MARGIN * expected.seconds(SPEEDS[kind]) / 60),
        "gpu_mb": math.ceil(expected.gpu / 1e6),
    }


def _bytes_per_number(config: Config, model: str, kind: Kind) -> int:
    dtype = config.all_models()[model].dtype or config.dtype
    if dtype == "auto":  # some CPUs take bfloat16: the larger of the two is planned for
        return 2 if kind == "cuda" else 4
    return 4 if dtype == "float32" else 2


def _is_converted(config: Config, model: str) -> bool:
    """Whether it is a GGUF file, or a checkpoint of mamba_ssm, which names its tokenizer."""
    source = config.all_models()[model]
    file = source.file or source.path or ""
    return source.tokenizer is not None or file.lower().endswith(".gguf")


def _flops(size: Size, part: Work) -> float:
    # A token attends to half of its passage on average; scores and their sum take 2 each.
    attention = 2 * part.length * size.attention_layers * size.attention_width
    # Decay, input, read-out.
    per_token = 2 * size.multiplied + attention + 6 * size.state_numbers
    return float(part.tokens) * per_token * (_GRADIENT if part.gradient else 1)


def _activation_bytes(size: Size, part: Work, number: int, kind: Kind) -> float:
    """Bytes beside the weights at the peak of one forward (and backward) pass."""
    tokens = min(part.batch, part.tokens)
    ffn = (3 if size.gated else 2) * size.n_units
    attention, mixer = 4 * size.attention_width, 3 * size.mixer_width
    scan = _scan_bytes(size, kind)
    if part.gradient:
        kept = size.attention_layers * (attention + 10 * size.d_model)
        kept += size.ffn_layers * (ffn + size.n_units)
        kept += size.state_layers * (mixer + 3 * size.d_model)
        # The logits and their gradient, and three float32 copies within the loss.
        logits = size.vocabulary * (2 * number + 3 * 4)
        return tokens * (kept * number + size.state_layers * scan + logits)
    layer = 4 * size.d_model + max(ffn, attention, mixer)
    per_token = number * (layer + size.vocabulary) + scan
    if part.masked:
        per_token += _MASK_BYTES * size.n_units
    stepping = _stepping_bytes(size, part, tokens) if part.stepped else 0
    return tokens * per_token + stepping


def _scan_bytes(size: Size, kind: Kind) -> float:
    """Bytes per token of one layer's scan in plain torch (docs/METHODS.md, section 9)."""
    if not size.state_layers:
        return 0
    copies, chunk = (2, _OWN_CHUNK) if kind == "cpu" else (6, size.chunk)
    return 4 * size.heads * (copies * chunk + 5 * size.head_dim)


def _stepping_bytes(size: Size, part: Work, tokens: int) -> float:
    """One state and its square, and per token B, C, sizes and products (METHODS, section 7)."""
    rows = tokens / part.length
    state = size.heads * size.head_dim * size.n_state
    return 4 * (
        2 * rows * state + tokens * (5 * size.groups * size.n_state + size.heads * size.head_dim)
    )
