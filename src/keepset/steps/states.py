"""The recurrent state: scored, evaluated, cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import models, text
from keepset.analyse import correlation
from keepset.calibrate.channels import Scorer, keep_sets
from keepset.calibrate.sets import Sets, channel_table, load_sets, memory_table, save_sets
from keepset.errors import ModelError
from keepset.files import store
from keepset.hold import cut
from keepset.measure import tables
from keepset.measure.runner import Runner, perplexity
from keepset.rules.rule import Rule
from keepset.rules.scores import CHANNEL_SCORES, need_gradients
from keepset.run.progress import Progress
from keepset.settings import State, StateStaticGrid, Statistics
from keepset.settings.grid import state_length_rules
from keepset.sites import StateSite, find_state_sites
from keepset.steps.common import PathLike, Run, load, sets_identity


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
    sets: Sets = {}
    channels, memory = pd.DataFrame(), pd.DataFrame()
    if runner.states:
        passes = 2 + need_gradients(CHANNEL_SCORES, grid.scores) + 2 * len(grid.sparsities)
        label = f"{identity['model']} {identity['corpus']} score_state"
        progress = Progress(label, passes * tokens.calibration.numel())
        # GHOST prunes as it scores: one pass does when all calibration text is one batch.
        batch = max(run.batch_tokens, min(tokens.calibration.numel(), 16 * run.batch_tokens))
        scorer = Scorer(
            runner.model,
            runner.states,
            tokens.calibration,
            batch,
            progress,
            gradient_tokens=run.batch_tokens // 4,  # as in keepset.calibrate.activations
        )
        with runner.holding(None):
            sets, sums = keep_sets(scorer, grid.scores, grid.sparsities, settings["seeds"])
            channels = channel_table(runner.states, sums, identity)
            memory = memory_table(scorer, tokens.calibration, identity)
        progress.close()
    found = {**loaded.provenance, "text": tokens.fingerprint, "settings": dict(settings)}
    save_sets(sets, outputs["sets"], sets_identity(loaded, tokens, settings))
    store.write_json(found, store.sidecar(outputs["sets"]))
    store.write_table(channels, outputs["channels"], found)
    store.write_table(memory, outputs["memory"], found)


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
    loaded = load(model, run)
    runner = loaded.runner
    if sets is not None:
        runner.state_sets = load_sets(sets, sets_identity(loaded, tokens, settings))
    label = f"{identity['model']} {identity['corpus']} {Path(output).stem}"
    own = rules if runner.states else []
    table = tables.perplexity_table(runner, tokens, own, identity, label)
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
    loaded = load(model, run)
    runner = loaded.runner
    runner.state_sets = load_sets(sets, sets_identity(loaded, tokens, settings))
    state = State.model_validate(settings["state"])
    rules = state_length_rules(state, settings["seeds"]) if runner.states else []
    label = f"{identity['model']} {identity['corpus']} lengths"
    parts = []
    for factor in state.lengths if rules else ():
        joined = tokens.joined(factor)
        if joined is None or not models.fits(runner.model, joined.evaluation.shape[1]):
            continue
        named = f"{label} {joined.evaluation.shape[1]}"
        table = tables.perplexity_table(runner, joined, [None, *rules], identity, named)
        # Words and bytes of the tokens where blocks were joined are not known.
        table = table.drop(columns=["n_words", "n_bytes"])
        parts.append(table.assign(length=joined.evaluation.shape[1]))
    found = {**loaded.provenance, "text": tokens.fingerprint}
    store.write_table(pd.concat(parts) if parts else pd.DataFrame(), output, found)


def correlate_state(
    channels: PathLike,
    statistics: Mapping[str, Any],
    seed: int,
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Correlate the size of channels with what they do."""
    table = correlation.state_correlation_table(
        pd.read_parquet(channels), Statistics.model_validate(statistics), seed, identity
    )
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
    loaded = load(model, run)
    runner, network = loaded.runner, loaded.runner.model
    runner.state_sets = load_sets(sets, sets_identity(loaded, tokens, settings))
    score, sparsity = settings["prune"]["score"], settings["prune"]["sparsity"]
    rule = Rule(score, sparsity, "corpus", seed=settings["seeds"][0], site="state", access="both")
    if not runner.states:
        raise ModelError(f"{identity['model']}: has no recurrent state to prune")
    found = {
        **identity,
        "rule": {"score": score, "sparsity": sparsity},
        "perplexity_dense": perplexity(runner, tokens.evaluation),
        "perplexity_masked": perplexity(runner, tokens.evaluation, rule),
        "parameters_dense": network.num_parameters(),
        "state_bytes_dense": _state_bytes(runner.states),
    }
    cut.prune_states(network, runner.state_sets[score, rule.seed, sparsity])
    cut.save_pruned(network, loaded.tokenizer, output)
    parameter = next(network.parameters())
    again = cut.load_pruned(output, dtype=parameter.dtype, device=parameter.device)
    small = Runner(again, [], batch_tokens=run.batch_tokens)
    found |= {
        "perplexity_pruned": perplexity(small, tokens.evaluation),
        "parameters_pruned": again.num_parameters(),
        "state_bytes_pruned": _state_bytes(find_state_sites(again)),
        "provenance": loaded.provenance,
    }
    store.write_json(found, Path(output).with_suffix(".json"))


def _state_bytes(sites: Sequence[StateSite]) -> int:
    """Bytes of the recurrent states of one sequence in float32."""
    return 4 * sum(site.n_heads * site.head_dim * site.n_state for site in sites)
