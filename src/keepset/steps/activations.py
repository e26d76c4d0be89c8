"""The activation cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keepset import text
from keepset.calibrate import activations
from keepset.files import store
from keepset.run.progress import Progress
from keepset.steps.common import PathLike, Run, cache_owner, load


def cache_activations(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    kinds: Sequence[str],
    gradients: bool,
    identity: Mapping[str, str],
    output: PathLike,
) -> None:
    """One pass over the calibration text -> the activation cache of `kinds`, and its sidecar."""
    tokens = text.load_blocks(blocks)
    setup = Run(**run)
    loaded = load(model, setup)
    label = f"{identity['model']} {identity['corpus']} cache_activations"
    progress = Progress(label, tokens.calibration.numel())
    moments = activations.collect_moments(
        loaded.runner.model,
        [site for kind in kinds for site in loaded.runner.sites_of(kind)],
        tokens.calibration,
        documents=tokens.calibration_document,
        bos=loaded.info["bos"],
        gradients=gradients,
        batch_tokens=setup.batch_tokens,
        progress=progress,
    )
    progress.close()
    owner = cache_owner(loaded.info, tokens, loaded.dtype, gradients)
    n_tokens = tokens.calibration.numel()
    sidecar = {**loaded.provenance, "identity": owner, "n_tokens": n_tokens}
    store.write_json(sidecar, store.sidecar(output))
    activations.save(moments, output, owner)
