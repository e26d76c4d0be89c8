"""What leaving units out saves in time."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from keepset import models, text
from keepset.decode.generate import generate
from keepset.errors import ConfigError
from keepset.files import store
from keepset.kernels import calibrate, choice
from keepset.run import provenance
from keepset.settings import Benchmark, Kernels
from keepset.settings.grid import benchmark_rules
from keepset.speed import blocks, decoding, timing
from keepset.steps.common import PathLike, Run, load, load_moments

logger = logging.getLogger("keepset")

COLUMNS = [
    "study", "model", "level", "kernel", "path", "device", "shape", "dtype", "threads", "method",
    "score", "sparsity", "window", "choice", "batch", "rounds", "ms_p20", "ms_p50", "ms_p80",
    "dense_ms_p50", "speedup_p20", "speedup_p50", "speedup_p80", "bytes", "roofline_ms",
]  # fmt: skip


def benchmark_shapes(
    study: str,
    settings: Mapping[str, Any],
    device: str,
    kernels: Mapping[str, str],
    output: PathLike,
) -> None:
    """Time the blocks of `settings` (a `Benchmark`) on random weights; writes the table.

    Raises:
        ConfigError: an implementation that `kernels` names cannot run on `device`.
    """
    setting = Benchmark.model_validate(settings)
    machine = timing.measure(models.resolve_device(device))
    rows = []
    with choice.choosing(Kernels.model_validate(kernels)) as chosen:
        choice.require(machine.device)
        for name, shape in setting.shapes.items():
            for number in setting.block_dtypes or [setting.dtype]:
                dtype = models.resolve_dtype(number, machine.device)
                made = (setting.blocks, dtype, machine, setting.seconds)
                timed = blocks.time_shape(name, shape, *made)
                rows += [{**row, "dtype": number} for row in timed]
    ran = {"chosen": chosen.model_dump()}
    _write(rows, {"study": study}, setting, (machine, ran), output)


def benchmark_model(
    model: PathLike,
    tokens: PathLike,
    cache: PathLike,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Time a whole model that decodes; `run`: device, kernels, dtype of the cache, gradients."""
    setting = Benchmark.model_validate(settings)
    read = text.load_blocks(tokens)
    moments = load_moments(cache, model, read, Run(run["device"], run["dtype"]), run["gradients"])
    loaded = load(model, Run(run["device"], setting.dtype, kernels=run["kernels"]))
    machine = timing.measure(models.resolve_device(run["device"]))
    network = loaded.runner.model
    prompt = _prompt(read.evaluation, setting).to(machine.device)
    rules = benchmark_rules(setting)
    rows = []
    with choice.choosing(Kernels.model_validate(run["kernels"])) as chosen:
        for row in decoding.time_decoding(network, prompt, rules, setting.tokens, machine, moments):
            logger.info("%(method)s %(sparsity)g W=%(window)s %(choice)s: %(speedup_p50).3f", row)
            rows.append({**row, "dtype": setting.dtype})
        # Two tokens tell what runs the mixers, where there are any.
        mixers = generate(network, prompt, 2).mixers if loaded.runner.sites_of("state") else {}
    ran = {"chosen": chosen.model_dump(), **mixers}
    _write(rows, identity, setting, (machine, ran), output)


def _prompt(blocks: Tensor, setting: Benchmark) -> Tensor:
    """The first tokens of the evaluation text, as many as end with a window of every rule."""
    n = math.lcm(*setting.windows)
    if blocks.numel() < n:
        raise ConfigError(
            f"benchmark.windows: the prompt must end with a window of each, which takes {n} tokens;"
            f" the evaluation text has {blocks.numel()}. Choose windows that divide each other"
        )
    return blocks.flatten()[None, :n]


def _write(
    rows: list[dict[str, Any]],
    identity: Mapping[str, Any],
    setting: Benchmark,
    ran: tuple[timing.Machine, Mapping[str, Any]],
    output: PathLike,
) -> None:
    machine, kernels = ran
    found = {
        "device": _device(machine.device),
        "threads": torch.get_num_threads(),
    }
    table = pd.DataFrame([{**identity, **row, **found} for row in rows]).reindex(columns=COLUMNS)
    facts = {
        **provenance.environment(),
        **found,
        "clock": calibrate.clock_name(),
        "cache_bytes": machine.cache,
        "bandwidth_bytes_per_s": machine.bandwidth,
        "crossovers_ms": calibrate.measured(),
        "kernels": {**kernels, "refused": choice.refusals()},
        "settings": setting.model_dump(mode="json"),
    }
    store.write_table(table, output, facts)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu"
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "cpu")


def join_benchmarks(parts: Sequence[PathLike], output: PathLike, csv: PathLike) -> None:
    """One `kernels` table, as Parquet with the facts of every part, and as CSV."""
    table = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    facts = {Path(part).parent.name: store.read_json(store.sidecar(part)) for part in parts}
    store.write_table(table, output, facts)
    with store.replacing(csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g", lineterminator="\n")
