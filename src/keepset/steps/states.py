"""The recurrent state: scored, evaluated, cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import kinds, models, text
from keepset.analyse.correlation import correlation_table
from keepset.calibrate.channels import Scorer
from keepset.calibrate.choice import channel_rule, keep_sets
from keepset.calibrate.memory import memory_table
from keepset.calibrate.sets import save_sets
from keepset.calibrate.units import channel_table
from keepset.errors import ModelError
from keepset.files import store
from keepset.hold import cut
from keepset.measure import tables
from keepset.measure.runner import Runner, perplexity
from keepset.rules.kinds import KINDS
from keepset.rules.masks import Masks
from keepset.rules.rule import Rule
from keepset.rules.scores import CHANNEL_SCORES, need_gradients
from keepset.run.progress import Progress
from keepset.settings import State, StateStaticGrid, Statistics
from keepset.settings.grid import state_length_rules
from keepset.steps.common import PathLike, Run, cache_identity, load, static_sets


def score_state(
    model: PathLike,
    blocks: PathLike,
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Score every channel and choose what every static setting keeps.

    Args:
        model: What `prepare_model` wrote.
        blocks: What `tokenize_corpus` wrote.
        run: How the model is run.
        settings: static (a `StateStaticGrid`) and seeds.
        identity: Leading columns.
        outputs: sets, channels, memory -> files.
    """
    tokens = text.load_blocks(blocks)
    loaded = load(model, run)
    runner, grid = loaded.runner, StateStaticGrid.model_validate(settings["static"])
    sets: dict[Rule, Masks] = {}
    sites = runner.sites_of("state")
    channels, memory = pd.DataFrame(), pd.DataFrame()
    if sites:
        passes = 2 + need_gradients(CHANNEL_SCORES, grid.scores) + 2 * len(grid.sparsities)
        label = f"{identity['model']} {identity['corpus']} score_state"
        progress = Progress(label, passes * tokens.calibration.numel())
        # GHOST prunes as it scores: one pass does when all calibration text is one batch.
        batch = max(run.batch_tokens, min(tokens.calibration.numel(), 16 * run.batch_tokens))
        scorer = Scorer(
            runner.model,
            sites,
            tokens.calibration,
            batch,
            progress,
            gradient_tokens=run.batch_tokens // 4,  # as in keepset.calibrate.activations
        )
        with runner.holding(None):
            sets, sums = keep_sets(scorer, grid.scores, grid.sparsities, settings["seeds"])
            channels = channel_table(sites, sums, identity)
            memory = memory_table(scorer, tokens.calibration, identity)
        progress.close()
    sidecar = {**loaded.provenance, "text": tokens.fingerprint, "settings": dict(settings)}
    identity = cache_identity(loaded.info, tokens, loaded.dtype, False)
    save_sets(sets, outputs["sets"], kinds.of("state").sets_identity(identity, settings))
    store.write_json(sidecar, store.sidecar(outputs["sets"]))
    store.write_table(channels, outputs["channels"], sidecar)
    store.write_table(memory, outputs["memory"], sidecar)


def evaluate_state(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike | None,
    run: Run,
    rules: Sequence[Rule],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Perplexity per block under rules on the state; `sets` is for static rules."""
    tokens = text.load_blocks(blocks)
    files = {} if sets is None else {"state": sets}
    loaded = load(model, run, static_sets(files, model, tokens, run, settings))
    runner = loaded.runner
    label = f"{identity['model']} {identity['corpus']} {Path(output).stem}"
    possible = rules if runner.sites_of("state") else []
    table = tables.perplexity_table(runner, tokens, possible, identity, label)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def evaluate_lengths(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike,
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Perplexity on longer passages than the channels were chosen on.

    `settings`: static and seeds as for `score_state`; state, the `state` section. Consecutive
    blocks are joined; lengths that the model's positions do not reach are left out.
    """
    tokens = text.load_blocks(blocks)
    loaded = load(model, run, static_sets({"state": sets}, model, tokens, run, settings))
    runner = loaded.runner
    state = State.model_validate(settings["state"])
    rules = state_length_rules(state, settings["seeds"]) if runner.sites_of("state") else []
    label = f"{identity['model']} {identity['corpus']} lengths"
    parts = []
    for factor in state.lengths if rules else ():
        joined = tokens.joined(factor)
        if joined is None or not models.fits(runner.model, joined.evaluation.shape[1]):
            continue
        length = joined.evaluation.shape[1]
        table = tables.perplexity_table(
            runner, joined, [None, *rules], identity, f"{label} {length}"
        )
        # Words and bytes of the tokens where blocks were joined are not known.
        table = table.drop(columns=["n_words", "n_bytes"])
        parts.append(table.assign(length=length))
    sidecar = {**loaded.provenance, "text": tokens.fingerprint}
    store.write_table(pd.concat(parts) if parts else pd.DataFrame(), output, sidecar)


def correlate_state(
    channels: PathLike,
    statistics: Mapping[str, Any],
    seed: int,
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Correlate the size of channels with what they do."""
    settings = Statistics.model_validate(statistics)
    units = pd.read_parquet(channels)
    table = correlation_table(KINDS["state"], units, settings, seed, identity)
    store.write_table(table, output, store.read_json(store.sidecar(channels)))


def prune_state(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike,
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Write the checkpoint with the smaller state, and what it does beside what it should do.

    `settings`: static and seeds as for `score_state`; prune, a `StatePrune`.
    """
    tokens = text.load_blocks(blocks)
    chosen = static_sets({"state": sets}, model, tokens, run, settings)
    loaded = load(model, run, chosen)
    runner, network = loaded.runner, loaded.runner.model
    sites, kind = runner.sites_of("state"), kinds.of("state")
    score, sparsity = settings["prune"]["score"], settings["prune"]["sparsity"]
    rule = channel_rule(score, sparsity, settings["seeds"][0])
    if not sites:
        raise ModelError(f"{identity['model']}: has no recurrent state to prune")
    summary = {
        **identity,
        "rule": {"score": score, "sparsity": sparsity},
        "perplexity_dense": perplexity(runner, tokens.evaluation),
        "perplexity_masked": perplexity(runner, tokens.evaluation, rule),
        "parameters_dense": network.num_parameters(),
        "state_bytes_dense": _state_bytes(sites),
    }
    kind.cut(network, chosen[rule])
    cut.save_pruned(network, loaded.tokenizer, output)
    parameter = next(network.parameters())
    again = cut.load_pruned(output, dtype=parameter.dtype, device=parameter.device)
    small = Runner(again, [], batch_tokens=run.batch_tokens)
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
