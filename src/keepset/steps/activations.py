"""The activation cache."""

from __future__ import annotations

from keepset import text
from keepset.calibrate import activations
from keepset.files import store
from keepset.run.progress import Progress
from keepset.steps.common import PathLike, Run, cache_identity, load


def cache_activations(
    model: PathLike, blocks: PathLike, run: Run, gradients: bool, label: str, output: PathLike
) -> None:
    """One pass over the calibration text -> the activation cache and its sidecar."""
    tokens = text.load_blocks(blocks)
    loaded = load(model, run)
    progress = Progress(label, tokens.calibration.numel())
    moments = activations.record(
        loaded.runner.model,
        loaded.runner.sites_of("ffn"),
        tokens.calibration,
        gradients=gradients,
        batch_tokens=run.batch_tokens,
        progress=progress,
    )
    progress.close()
    identity = cache_identity(loaded.info, tokens, loaded.dtype, gradients)
    n_tokens = tokens.calibration.numel()
    sidecar = {**loaded.provenance, "identity": identity, "n_tokens": n_tokens}
    store.write_json(sidecar, store.sidecar(output))
    activations.save(moments, output, identity)
