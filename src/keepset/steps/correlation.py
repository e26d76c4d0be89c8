"""Size against impact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keepset import text
from keepset.analyse.correlation import correlation_table
from keepset.calibrate.units import unit_table
from keepset.files import store
from keepset.measure import ablations
from keepset.rules.kinds import KINDS
from keepset.settings import Ablation, Statistics
from keepset.steps.common import PathLike, Run, load, load_moments


def correlate_size_impact(
    model: PathLike,
    blocks: PathLike,
    cache: PathLike,
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Correlate size with impact; measure single-unit ablations where the corpus asks for it.

    `settings`: gradients (bool), seed, statistics, and ablation (null where not measured).
    """
    tokens = text.load_blocks(blocks)
    moments = load_moments(cache, model, tokens, run, settings["gradients"])
    loaded = load(model, run)
    sites = loaded.runner.sites_of("ffn")
    units = unit_table(sites, moments, tokens.calibration.numel())
    ablated = None
    if settings["ablation"] is not None:
        ablation = Ablation.model_validate(settings["ablation"])
        ablated = ablations.sample_units(units, ablation.units, settings["seed"])
        n_blocks = -(-ablation.tokens // tokens.calibration.shape[1])
        label = f"{identity['model']} {identity['corpus']} ablations"
        loss = ablations.measure_ablations(
            loaded.runner, sites, ablated, tokens.calibration[:n_blocks], label
        )
        ablated = ablated.assign(loss=loss)
    statistics = Statistics.model_validate(settings["statistics"])
    table = correlation_table(KINDS["ffn"], units, statistics, settings["seed"], identity, ablated)
    sidecar = {**loaded.provenance, "text": tokens.fingerprint, "settings": dict(settings)}
    if ablated is not None:
        sidecar["ablations"] = ablated.to_dict(orient="records")
    store.write_table(table, output, sidecar)
