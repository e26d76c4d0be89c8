"""Routed experts: scored, cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keepset import kinds, text
from keepset.calibrate import experts
from keepset.errors import ModelError
from keepset.files import store
from keepset.hold import cut
from keepset.measure.runner import Runner, perplexity
from keepset.rules.rule import Rule
from keepset.run.progress import Progress
from keepset.sites.families import no_sites
from keepset.steps.common import PathLike, Run, cache_owner, load, static_sets


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


def prune_experts(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike,
    run: Mapping[str, Any],
    prune: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Write the checkpoint with fewer experts, and what it does beside what it should do.

    Args:
        sets: What `score_experts` wrote.
        prune: score, sparsity and seed.

    Raises:
        ModelError: the model has no routed experts, or they cannot be cut.
    """
    tokens, setup = text.load_blocks(blocks), Run(**run)
    keep = static_sets({"expert": sets}, model, tokens, setup, {"expert": {}})
    loaded = load(model, setup, keep)
    runner, network = loaded.runner, loaded.runner.model
    if not (sites := runner.sites_of("expert")):
        raise ModelError(f"{identity['model']}: {no_sites(network, 'expert')} to prune")
    rule = Rule(prune["score"], prune["sparsity"], "corpus", seed=prune["seed"], site="expert")
    summary = {
        **identity,
        "rule": dict(prune),
        "perplexity_dense": perplexity(runner, tokens.evaluation),
        "perplexity_masked": perplexity(runner, tokens.evaluation, rule),
        "parameters_dense": network.num_parameters(),
        "experts_dense": sites[0].n_units,
    }
    kinds.of("expert").cut(network, keep[rule])
    cut.save_pruned(network, loaded.tokenizer, output)
    parameter = next(network.parameters())
    again = cut.load_pruned(output, dtype=parameter.dtype, device=parameter.device)
    small = Runner(again, [], batch_tokens=setup.batch_tokens, bos=loaded.info["bos"])
    left: Any = kinds.of("expert").find(again)[0]
    summary |= {
        "perplexity_pruned": perplexity(small, tokens.evaluation),
        "parameters_pruned": again.num_parameters(),
        "experts_pruned": left.n_units,
        "provenance": loaded.provenance,
    }
    store.write_json(summary, Path(output).with_suffix(".json"))
