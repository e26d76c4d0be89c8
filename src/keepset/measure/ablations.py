"""Leave single units out, one at a time, and measure what the loss does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from keepset.calibrate import groups as document_groups
from keepset.calibrate.units import unit_table
from keepset.hold.inputs import watching
from keepset.hold.replay import recording, replaying
from keepset.measure.runner import Runner
from keepset.rules.scores import Moments
from keepset.run.progress import Progress
from keepset.settings import Ablation
from keepset.sites.families import FAMILIES
from keepset.sites.ffn import Site, decoder_layers, first_units
from keepset.text import Blocks

# Units per layer in the ablation sample: one from each sixteenth of the layer's size order.
_STRATA = 16
# Tokens that tell whether a model can be run again from a layer on.
_TRIAL = 16
_OF_TEXT = ["magnitude", "output", "taylor"]
"""The scores of a unit that depend on text."""


def ablation_table(
    runner: Runner,
    sites: Sequence[Site],
    moments: Mapping[str, Moments],
    blocks: Blocks,
    ablation: Ablation,
    seed: int,
    identity: Mapping[str, Any],
) -> pd.DataFrame:
    """Leave a sample of units out, one at a time, and set beside it how they were scored.

    The text is that of the smallest groups of calibration documents that hold `ablation.tokens`
    tokens, whole, so that scores on it are sums that the cache has.

    Args:
        runner: The model.
        sites: The sites that units are taken from, in order.
        moments: Their calibration sums, kept apart by groups of documents.
        blocks: The calibration text.
        ablation: How many units, on how much text.
        seed: Decides the units.
        identity: Leading columns.

    Returns:
        The `ablations` table of docs/METHODS.md: layer, unit; n_documents and n_tokens of the
        text; magnitude, weight, output and, where gradients were taken, taylor on this text; the
        same as magnitude_other and so on, on all other calibration text, NaN where there is none;
        loss, what `measure_ablations` gives on this text.
    """
    calibration, documents = blocks.calibration, blocks.calibration_document
    groups = document_groups.deal(documents)
    chosen = document_groups.holding(groups, -(-ablation.tokens // calibration.shape[1]))
    rest = [group for group in range(document_groups.count(groups)) if group not in chosen]
    sample = sample_units(unit_table(sites, moments), ablation.units, seed).index
    own_text = torch.isin(groups, torch.tensor(chosen))
    table = unit_table(sites, moments, chosen).loc[sample]
    scores = [name for name in _OF_TEXT if name in table]
    other = unit_table(sites, moments, rest).loc[sample, scores].add_suffix("_other")
    label = f"{identity['model']} {identity['corpus']} ablations"
    loss = measure_ablations(runner, sites, table, calibration[own_text], label)
    size = {
        "n_documents": len(documents[own_text].unique()),
        "n_tokens": calibration[own_text].numel(),
    }
    table = table.assign(**size).join(other).assign(loss=loss)
    return pd.concat([pd.DataFrame(dict(identity), index=table.index), table], axis=1)


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

    The unit is left out at every token of the text; a BOS before it is left alone.

    Args:
        runner: The model.
        sites: The sites that the sample is of, in order.
        sample: Rows with layer and unit, as in `unit_table`.
        blocks: (n_blocks, tokens) int64.
        label: What the progress line says.

    Returns:
        Mean change in nats per predicted token, indexed as `sample`.
    """
    n_before = int(runner.bos is not None)
    # As many rows as the runner puts into one batch: a row is known by its place there.
    rows = max(1, runner.batch_tokens // (blocks.shape[1] + n_before))
    progress = Progress(label, (len(sample) + rows) * blocks.numel())
    total = pd.Series(0.0, index=sample.index)
    first_of = first_units(sites)
    before = _layers_before(runner, sites, sample["layer"], blocks[:1, :_TRIAL])
    for block in blocks:
        # Every row of a batch is the same text with another unit left out. The dense loss is
        # taken in a batch of the same shape, so that a change is not one of rounding.
        batch = block.expand(rows, -1)
        with recording(before) as outputs:
            dense = runner.block_nll(batch, progress=progress)[0]
        for start in range(0, len(sample), rows):
            part = sample.iloc[start : start + rows]
            left_out = list(zip(part["layer"], part["unit"], strict=True))

            def leave_out(site: Site, h: Tensor, units: list[Any] = left_out) -> Tensor | None:
                start = first_of[site.key]
                there = {
                    row: unit - start
                    for row, (layer, unit) in enumerate(units)
                    if layer == site.layer and start <= unit < start + site.n_units
                }
                if not there:
                    return None
                h = h.clone()
                h[list(there), n_before:, list(there.values())] = 0
                return h

            # What is left out changes nothing in earlier layers.
            first = min(part["layer"])
            with (
                replaying(before[:first], outputs[:first]),
                watching(runner.model, sites, leave_out),
            ):
                nll = runner.block_nll(batch, progress=progress)[: len(part)]
            total[part.index] += (nll - dense).numpy()
    progress.close()
    return total / runner.n_predicted(blocks)


def _layers_before(
    runner: Runner, sites: Sequence[Site], ablated: Iterable[int], text: Tensor
) -> list[nn.Module]:
    """The decoder layers before the last of `ablated`, if what they return can be used again.

    That it can is tried on `text` (1, tokens), for each of `ablated`: the loss is the same to the
    bit. No layers where layers may pass on more than they return: in families that keepset has no
    record of, and where depths share a down projection, whose calls are counted.
    """
    known = runner.model.config.get_text_config().model_type in FAMILIES
    if not known or any(site.n_calls > 1 for site in sites):
        return []
    layers = list(decoder_layers(runner.model)[1])[: max(ablated)]
    with recording(layers) as outputs:
        dense = runner.block_nll(text)
    for first in set(ablated):
        with replaying(layers[:first], outputs[:first]):
            if not torch.equal(runner.block_nll(text), dense):
                return []
    return layers
