"""Routed experts, scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keepset import text
from keepset.calibrate import experts
from keepset.files import store
from keepset.run.progress import Progress
from keepset.steps.common import PathLike, Run, cache_owner, load


def score_experts(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    identity: Mapping[str, str],
    output: PathLike,
) -> None:
    """One pass over the calibration text -> what static sets of experts are chosen by."""
    tokens = text.load_blocks(blocks)
    setup = Run(**run)
    loaded = load(model, setup)
    sites = loaded.runner.sites_of("expert")
    label = f"{identity['model']} {identity['corpus']} score_experts"
    progress = Progress(label, tokens.calibration.numel())
    sums = experts.collect_expert_sums(
        loaded.runner.model,
        sites,
        tokens.calibration,
        bos=loaded.info["bos"],
        batch_tokens=setup.batch_tokens,
        progress=progress,
    )
    progress.close()
    owner = cache_owner(loaded.info, tokens, loaded.dtype)
    sidecar = {**loaded.provenance, "identity": owner, "n_tokens": tokens.calibration.numel()}
    store.write_json(sidecar, store.sidecar(output))
    experts.save(sums, output, owner)
