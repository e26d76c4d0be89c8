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
from keepset.kernels.clock import clock_name
from keepset.kernels.selection import Selection
from keepset.run import provenance
from keepset.settings import Benchmark, Kernels
from keepset.settings.grid import benchmark_rules
from keepset.speed import decoding, timing
from keepset.speed.blocks import time_shape
from keepset.steps.common import PathLike, Run, load, load_moments
from keepset.steps.tables import read_tables

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
    machine = timing.machine_of(models.resolve_device(device))
    selection = Selection(Kernels.model_validate(kernels))
    selection.require(machine.device)
    rows = []
    for name, shape in setting.shapes.items():
        for dtype_name in setting.block_dtypes or [setting.dtype]:
            dtype = models.resolve_dtype(dtype_name, machine.device)
            case = (setting.blocks, dtype, machine, setting.seconds, selection)
            timed = time_shape(name, shape, *case)
            rows += [{"study": study, **row, "dtype": dtype_name} for row in timed]
    _write(rows, setting, machine, _kernels(selection), output)


def benchmark_model(
    model: PathLike,
    blocks: PathLike,
    cache: PathLike,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Time a whole model that decodes; `run`: device, kernels, dtype of the cache, gradients."""
    setting = Benchmark.model_validate(settings)
    tokens = text.load_blocks(blocks)
    moments = load_moments(cache, model, tokens, Run(run["device"], run["dtype"]), run["gradients"])
    loaded = load(model, Run(run["device"], setting.dtype, kernels=run["kernels"]))
    machine = timing.machine_of(models.resolve_device(run["device"]))
    network = loaded.runner.model
    prompt = _prompt(tokens.evaluation, setting).to(machine.device)
    rules = benchmark_rules(setting)
    selection = loaded.runner.selection
    rows = []
    bos = loaded.runner.bos
    for row in decoding.time_decoding(
        network, prompt, rules, setting.tokens, machine, moments, selection, bos
    ):
        logger.info("%(method)s %(sparsity)g W=%(window)s %(choice)s: %(speedup_p50).3f", row)
        rows.append({**identity, **row, "dtype": setting.dtype})
    # Two tokens tell what runs the mixers, where there are any.
    mixers = generate(network, prompt, 2, kernels=selection, bos=bos).mixers
    _write(rows, setting, machine, _kernels(selection, mixers), output)


def _prompt(blocks: Tensor, setting: Benchmark) -> Tensor:
    """The first tokens of the evaluation text, as many as end with a window of every rule."""
    n = math.lcm(*setting.windows)
    if blocks.numel() < n:
        raise ConfigError(
            f"benchmark.windows: the prompt must end with a window of each, which takes {n} tokens;"
            f" the evaluation text has {blocks.numel()}. Choose windows that divide each other"
        )
    return blocks.flatten()[None, :n]


def _kernels(selection: Selection, mixers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts of a selection, for the record."""
    chosen = {"chosen": selection.wanted.model_dump(), **(mixers or {})}
    kernels = {**chosen, "refused": selection.refusals}
    return {"crossovers_ms": selection.crossovers_ms(), "kernels": kernels}


def _write(
    rows: list[dict[str, Any]],
    setting: Benchmark,
    machine: timing.Machine,
    kernels: Mapping[str, Any],
    output: PathLike,
) -> None:
    place = {"device": timing.device_name(machine.device), "threads": torch.get_num_threads()}
    table = pd.DataFrame([{**row, **place} for row in rows]).reindex(columns=COLUMNS)
    facts = {
        **provenance.environment(),
        **place,
        "clock": clock_name(),
        "cache_bytes": machine.cache,
        "bandwidth_bytes_per_s": machine.bandwidth,
        **kernels,
        "settings": setting.model_dump(mode="json"),
    }
    store.write_table(table, output, facts)


def join_benchmarks(inputs: Sequence[PathLike], outputs: Mapping[str, PathLike]) -> None:
    """One `kernels` table, as Parquet with the facts of every part, and as CSV."""
    table = read_tables(inputs)
    facts = {Path(part).parent.name: store.read_json(store.sidecar(part)) for part in inputs}
    store.write_table(table, outputs["table"], facts)
    with store.replacing(outputs["csv"]) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g", lineterminator="\n")
