"""Leave single units out, one at a time, and measure what the loss does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from keepset.hold.inputs import watching
from keepset.measure.runner import Runner
from keepset.run.progress import Progress
from keepset.sites.ffn import Site

# Units per layer in the ablation sample: one from each sixteenth of the layer's size order.
_STRATA = 16


def sample_units(units: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """A sample stratified by layer and by size.

    Args:
        units: Rows with layer, unit and magnitude.
        count: Units wanted; layers are taken evenly over the depth, 16 units (or all) in each.
        seed: Seed of the draw within each stratum.

    Returns:
        The rows of the sample.
    """
    layers = units["layer"].unique()
    n_layers = int(np.clip(count // _STRATA, 1, len(layers)))
    chosen = layers[np.linspace(0, len(layers) - 1, n_layers).round().astype(int)]
    rng = np.random.default_rng(seed)
    rows: list[Any] = []
    for layer in chosen:
        by_size = units.index[units["layer"] == layer][
            np.argsort(units.loc[units["layer"] == layer, "magnitude"], kind="stable")
        ]
        for stratum in np.array_split(by_size, min(_STRATA, count, len(by_size))):
            rows.append(rng.choice(stratum))
    return units.loc[rows]


def measure_ablations(
    runner: Runner, sites: Sequence[Site], sample: pd.DataFrame, blocks: Tensor, label: str
) -> pd.Series:
    """The measured change of the loss when one unit alone is left out: its true impact.

    Args:
        runner: The model.
        sites: The sites that the sample is of, one per layer.
        sample: Rows with layer and unit.
        blocks: (n_blocks, tokens) int64.
        label: What the progress line says.

    Returns:
        Mean change in nats per predicted token, indexed as `sample`.
    """
    rows = max(1, runner.batch_tokens // blocks.shape[1])
    progress = Progress(label, (len(sample) + rows) * blocks.numel())
    total = pd.Series(0.0, index=sample.index)
    layers = {site.layer: site for site in sites}
    for block in blocks:
        # Every row of a batch is the same text with another unit left out. The dense loss is
        # taken in a batch of the same shape, so that a change is not one of rounding.
        batch = block.expand(rows, -1)
        dense = runner.block_nll(batch, progress=progress)[0]
        for start in range(0, len(sample), rows):
            part = sample.iloc[start : start + rows]
            left_out = list(zip(part["layer"], part["unit"], strict=True))

            def leave_out(site: Site, h: Tensor, units: list[Any] = left_out) -> Tensor | None:
                rows = [row for row, (layer, _) in enumerate(units) if layers[layer] is site]
                if not rows:
                    return None
                h = h.clone()
                h[rows, :, [units[row][1] for row in rows]] = 0
                return h

            with watching(runner.model, sites, leave_out), torch.inference_mode():
                nll = runner.block_nll(batch, progress=progress)[: len(part)]
            total[part.index] += (nll - dense).numpy()
    progress.close()
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))
