"""Size against impact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from keepset import text
from keepset.analyse.correlation import correlation_table
from keepset.calibrate import groups as document_groups
from keepset.calibrate.units import unit_table
from keepset.files import store
from keepset.measure.ablations import ablation_table
from keepset.rules.kinds import KINDS
from keepset.settings import Ablation, Statistics
from keepset.steps.common import PathLike, Run, load, load_moments


def correlate_size_impact(
    model: PathLike,
    blocks: PathLike,
    cache: PathLike,
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Correlate size with impact; measure single-unit ablations where the corpus asks for it.

    Units are scored in the dtype of the cache, and ablated in float32.

    Args:
        settings: The kind of site, gradients (bool), seed, statistics, and ablation (null where
            not measured).
        outputs: correlation and ablations -> files; ablations is empty where not measured.
    """
    tokens = text.load_blocks(blocks)
    setup = Run(**run)
    moments = load_moments(cache, model, tokens, setup, settings["gradients"])
    # What one unit changes is less than what bfloat16 rounds off, or about as much.
    exact = settings["ablation"] is not None
    loaded = load(model, replace(setup, dtype="float32") if exact else setup)
    sites = loaded.runner.sites_of(settings["kind"])
    documents = tokens.calibration_document
    n_groups = document_groups.count(document_groups.deal(documents))
    units = (
        unit_table(sites, moments, document_groups.others(n_groups, left_out)).assign(
            left_out=left_out, n_documents=len(documents.unique())
        )
        for left_out in document_groups.left_outs(n_groups)
    )
    ablated = pd.DataFrame()
    if settings["ablation"] is not None:
        ablated = ablation_table(
            loaded.runner, sites, moments, tokens,
            Ablation.model_validate(settings["ablation"]), settings["seed"], identity,
        )  # fmt: skip
    kind, statistics = KINDS[settings["kind"]], Statistics.model_validate(settings["statistics"])
    table = correlation_table(kind, units, statistics.confidence, identity, ablated)
    sidecar = {**loaded.provenance, "text": tokens.fingerprint, "settings": dict(settings)}
    store.write_table(ablated, outputs["ablations"], sidecar)
    scores = {"dtype": store.read_json(store.sidecar(cache))["dtype"]}
    store.write_table(table, outputs["correlation"], {**sidecar, **scores})
