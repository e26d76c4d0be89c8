"""Size against impact: does a unit that is often large also matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from keepset.analyse import ranks
from keepset.hold.inputs import watching
from keepset.measure.runner import Runner
from keepset.rules.scores import Moments
from keepset.run.progress import Progress
from keepset.settings import Statistics
from keepset.sites import Site

# Units per layer in the ablation sample: one from each sixteenth of the layer's size order.
_STRATA = 16


def unit_table(
    sites: Sequence[Site], moments: Mapping[str, Moments], n_tokens: int
) -> pd.DataFrame:
    """Size and three notions of impact of every unit.

    Args:
        sites: The sites, in order.
        moments: Their calibration sums over `n_tokens` tokens.
        n_tokens: How many tokens were summed.

    Returns:
        Columns layer, unit, magnitude (mean |h|), weight (||w||), output (the root mean square
        change of the layer's output when the unit alone is left out, sqrt(mean h^2) ||w||) and,
        where gradients were taken, taylor (|sum h dL/dh| per token, nats).
    """
    tables = []
    for site in sites:
        own = moments[site.key]
        columns = {
            "layer": site.layer,
            "unit": range(site.n_units),
            "magnitude": own["abs_sum"].numpy() / n_tokens,
            "weight": own["weight_norm"].numpy(),
            "output": ((own["square_sum"] / n_tokens).sqrt() * own["weight_norm"]).numpy(),
        }
        if "taylor_sum" in own:
            columns["taylor"] = own["taylor_sum"].abs().numpy() / n_tokens
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def sample_units(units: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """A sample stratified by layer and by size.

    Args:
        units: What `unit_table` returned.
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
    runner: Runner, sample: pd.DataFrame, blocks: Tensor, label: str
) -> pd.Series:
    """The measured change of the loss when one unit is left out: the impact that is true.

    Args:
        runner: The model.
        sample: Rows with layer and unit.
        blocks: (n_blocks, tokens) int64.
        label: What the progress line says.

    Returns:
        Mean change in nats per predicted token, indexed as `sample`.
    """
    rows = max(1, runner.batch_tokens // blocks.shape[1])
    progress = Progress(label, (len(sample) + rows) * blocks.numel())
    total = pd.Series(0.0, index=sample.index)
    sites = {site.layer: site for site in runner.sites}
    for block in blocks:
        # Every row of a batch is the same text with another unit left out; the dense loss is
        # taken in a batch of the same shape, so that rounding does not stand in for a change.
        batch = block.expand(rows, -1)
        dense = runner.block_nll(batch, progress=progress)[0]
        for start in range(0, len(sample), rows):
            part = sample.iloc[start : start + rows]
            where = list(zip(part["layer"], part["unit"], strict=True))

            def leave_out(site: Site, h: Tensor, where: list[Any] = where) -> Tensor | None:
                own = [row for row, (layer, _) in enumerate(where) if sites[layer] is site]
                if not own:
                    return None
                h = h.clone()
                h[own, :, [where[row][1] for row in own]] = 0
                return h

            with watching(runner.model, runner.sites, leave_out), torch.inference_mode():
                nll = runner.block_nll(batch, progress=progress)[: len(part)]
            total[part.index] += (nll - dense).numpy()
    progress.close()
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


def correlation_table(
    units: pd.DataFrame,
    ablated: pd.DataFrame | None,
    statistics: Statistics,
    seed: int,
    identity: Mapping[str, Any],
) -> pd.DataFrame:
    """Correlate size with every notion of impact, per layer and over all layers.

    Args:
        units: What `unit_table` returned.
        ablated: The sample with its measured `loss` change, where it was measured.
        statistics: Level and resamples of the intervals.
        seed: Seed of the bootstrap.
        identity: Leading columns.

    Returns:
        The `correlation` table of docs/METHODS.md; layer -1 pools all layers.
    """
    sources = [(units, name) for name in ("weight", "output", "taylor") if name in units]
    if ablated is not None:
        sources.append((ablated, "loss"))
    pairs = [(table, "magnitude", impact) for table, impact in sources]
    return _correlations(pairs, statistics, seed, {**identity, "site": "ffn"})


def state_correlation_table(
    channels: pd.DataFrame, statistics: Statistics, seed: int, identity: Mapping[str, Any]
) -> pd.DataFrame:
    """Correlate what is known of state channels, per layer and over all layers.

    `magnitude`, the product of the weights' norms, and `controllability`, the size of the state,
    stand for size; `ghost` (the energy), `observability` and `taylor` for impact.

    Args:
        channels: The `channels` table of one model and corpus; may be empty.
        statistics: Level and resamples of the intervals.
        seed: Seed of the bootstrap.
        identity: Leading columns.

    Returns:
        Rows of the `correlation` table; layer -1 pools all layers.
    """
    if not len(channels):
        return pd.DataFrame()
    table = channels.rename(columns={"energy": "ghost"})
    impacts = [name for name in ("ghost", "observability", "taylor") if name in table]
    sizes = ("magnitude", "controllability")
    pairs = [(table, size, impact) for size in sizes for impact in impacts]
    return _correlations(pairs, statistics, seed, {**identity, "site": "state"})


def _correlations(
    pairs: Sequence[tuple[pd.DataFrame, str, str]],
    statistics: Statistics,
    seed: int,
    identity: Mapping[str, Any],
) -> pd.DataFrame:
    tables = []
    for table, size, impact in pairs:
        found = ranks.correlate(
            table[size].to_numpy(),
            table[impact].to_numpy(),
            table["layer"].to_numpy(),
            confidence=statistics.confidence,
            resamples=min(statistics.resamples, 1999),
            seed=seed,
        )
        columns = {**identity, "size": size, "impact": impact}
        for at, (name, value) in enumerate(columns.items()):
            found.insert(at, name, value)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)
