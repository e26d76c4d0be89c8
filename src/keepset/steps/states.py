"""The recurrent state: scored, cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import kinds, text
from keepset.calibrate.channels import Scorer
from keepset.calibrate.choice import channel_rule, keep_sets
from keepset.calibrate.memory import memory_table
from keepset.calibrate.sets import save_sets
from keepset.calibrate.units import channel_table
from keepset.errors import ModelError
from keepset.files import store
from keepset.hold import cut
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.measure.runner import Runner, perplexity
from keepset.rules.masks import Masks
from keepset.rules.rule import Rule
from keepset.rules.scores import CHANNEL_SCORES, need_gradients
from keepset.run.progress import Progress
from keepset.settings import StateStaticGrid
from keepset.sites.families import no_sites
from keepset.steps.common import PathLike, Run, cache_owner, load, static_sets


def score_state(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    chosen: Mapping[str, Any],
    identity: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Score every channel and choose what every static setting keeps.

    Args:
        chosen: What is chosen by: static (a `StateStaticGrid`) and seeds.
        outputs: sets, channels, memory -> files.
    """
    tokens = text.load_blocks(blocks)
    setup = Run(**run)
    loaded = load(model, setup)
    runner, grid = loaded.runner, StateStaticGrid.model_validate(chosen["static"])
    sets: dict[Rule, Masks] = {}
    sites = runner.sites_of("state")
    channels, memory = pd.DataFrame(), pd.DataFrame()
    if sites:
        passes = 2 + need_gradients(CHANNEL_SCORES, grid.scores) + 2 * len(grid.sparsities)
        label = f"{identity['model']} {identity['corpus']} score_state"
        progress = Progress(label, passes * tokens.calibration.numel())
        # GHOST prunes as it scores: one pass does when all calibration text is one batch.
        batch = max(setup.batch_tokens, min(tokens.calibration.numel(), 16 * setup.batch_tokens))
        scorer = Scorer(
            runner.model,
            sites,
            tokens.calibration,
            batch,
            progress,
            documents=tokens.calibration_document,
            bos=loaded.info["bos"],
            gradient_tokens=setup.batch_tokens // 4,  # as in keepset.calibrate.activations
        )
        with runner.holding(None):
            sets, sums = keep_sets(
                scorer, grid.scores, grid.sparsities, chosen["seeds"], measured=True
            )
            channels = channel_table(sites, sums, identity)
            channels["n_documents"] = len(tokens.calibration_document.unique())
        # On a CPU what torch's operations return is counted, which numba's loops do not show.
        counted = "torch" if loaded.provenance["device"] == "cpu" else runner.selection
        with mixer_kernels(runner.model, Selection.of(counted)):
            memory = memory_table(scorer, tokens.calibration, identity)
        progress.close()
    sidecar = {**loaded.provenance, "text": tokens.fingerprint, "settings": dict(chosen)}
    cache = cache_owner(loaded.info, tokens, loaded.dtype, False)
    save_sets(sets, outputs["sets"], kinds.of("state").sets_owner(cache, chosen))
    store.write_json(sidecar, store.sidecar(outputs["sets"]))
    store.write_table(channels, outputs["channels"], sidecar)
    store.write_table(memory, outputs["memory"], sidecar)


def prune_state(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike,
    run: Mapping[str, Any],
    chosen: Mapping[str, Any],
    prune: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Write the checkpoint with the smaller state, and what it does beside what it should do.

    `chosen` is as for `score_state`; `prune` a `StatePrune`.
    """
    tokens, setup = text.load_blocks(blocks), Run(**run)
    keep = static_sets({"state": sets}, model, tokens, setup, {"state": chosen})
    loaded = load(model, setup, keep)
    runner, network, kind = loaded.runner, loaded.runner.model, kinds.of("state")
    if not (sites := runner.sites_of("state")):
        raise ModelError(f"{identity['model']}: {no_sites(network, 'state')} to prune")
    rule = channel_rule(prune["score"], prune["sparsity"], chosen["seeds"][0])
    summary = {
        **identity,
        "rule": dict(prune),
        "perplexity_dense": perplexity(runner, tokens.evaluation),
        "perplexity_masked": perplexity(runner, tokens.evaluation, rule),
        "parameters_dense": network.num_parameters(),
        "state_bytes_dense": _state_bytes(sites),
    }
    kind.cut(network, keep[rule])
    cut.save_pruned(network, loaded.tokenizer, output)
    parameter = next(network.parameters())
    again = cut.load_pruned(output, dtype=parameter.dtype, device=parameter.device)
    small = Runner(again, [], batch_tokens=setup.batch_tokens, bos=loaded.info["bos"])
    summary |= {
        "perplexity_pruned": perplexity(small, tokens.evaluation),
        "parameters_pruned": again.num_parameters(),
        "state_bytes_pruned": _state_bytes(kind.find(again)),
        "provenance": loaded.provenance,
    }
    store.write_json(summary, Path(output).with_suffix(".json"))


def _state_bytes(sites: Sequence[Any]) -> int:
    """Bytes of the recurrent states of one sequence in float32."""
    return 4 * sum(site.n_heads * site.head_dim * site.n_state for site in sites)
