"""The state channels that every static setting keeps, chosen on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from keepset.calibrate.channels import Scorer, Sums
from keepset.errors import ConfigError, ModelError
from keepset.rules.masks import Masks, top_mask
from keepset.rules.rule import Rule, describe, n_kept
from keepset.rules.scores import (
    CHANNEL_SCORES,
    need_gradients,
    random_numbers,
    site_seed,
    static_names,
)
from keepset.sites import AnySite
from keepset.sites.families import no_sites
from keepset.sites.state import StateSite


def channel_rule(score: str, sparsity: float, seed: int) -> Rule:
    """The static rule on state channels."""
    return Rule(score, sparsity, "corpus", seed=seed, site="state", access="both")


def allocate(scores: Mapping[str, Tensor], sparsity: float, *, uniform: bool) -> Masks:
    """Choose the channels that are kept.

    The groups of a layer keep the same number of channels, since a smaller state has one size per
    layer: ranked together are the layers' k-th best channels, in the root mean square over groups.

    Args:
        scores: Site key -> (n_groups, n_state), larger is kept first, in order of execution.
        sparsity: Share left out.
        uniform: Whether every layer keeps the same share; else one threshold serves all layers.
            A layer keeps one channel per group at least.

    Returns:
        Site key -> (n_groups, n_state) bool; ties go to the earlier layer and lower channel.

    Raises:
        ModelError: a score is not finite.
    """
    for key, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ModelError(f"NaN or infinity in the scores of {key}; try dtype: float32")
    if uniform:
        counts = {key: n_kept(score.shape[1], sparsity) for key, score in scores.items()}
    else:
        counts = _global_counts(scores, sparsity)
    return {key: top_mask(score.float(), counts[key]) for key, score in scores.items()}


def _global_counts(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    slots = {
        key: score.double().sort(dim=1, descending=True).values.square().mean(dim=0).sqrt()
        for key, score in scores.items()
    }
    # As many as if every layer kept its share, so that both ways save the same memory.
    total = sum(n_kept(len(values), sparsity) for values in slots.values())
    rest = torch.cat([values[1:] for values in slots.values()])
    chosen = torch.zeros(len(rest), dtype=torch.bool)
    if (most := total - len(slots)) > 0:
        chosen[torch.argsort(rest, descending=True, stable=True)[:most]] = True
    parts = chosen.split([len(values) - 1 for values in slots.values()])
    return {key: 1 + int(part.sum()) for key, part in zip(slots, parts, strict=True)}


def random_scores(sites: Sequence[StateSite], seed: int) -> dict[str, Tensor]:
    """One number per channel, seeded: site key -> (n_groups, n_state) float64."""
    return {
        site.key: random_numbers((site.n_groups, site.n_state), site_seed(seed, site.key))
        for site in sites
    }


def keep_sets(
    scorer: Scorer,
    scores: Sequence[str],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    *,
    measured: bool = False,
) -> tuple[dict[Rule, Masks], dict[str, Sums]]:
    """The channels that every static setting keeps.

    Args:
        scorer: The model and its calibration text.
        scores: Names of `CHANNEL_SCORES` that can choose once.
        sparsities: Shares left out.
        seeds: Seeds of seeded scores; the first stands for all other scores.
        measured: Whether the sums hold the measured change of y too (`Scorer.one_shot`).

    Returns:
        Rule -> masks; and the sums of the unpruned model.

    Raises:
        ConfigError: a score is unknown.
    """
    known = static_names(CHANNEL_SCORES)
    if unknown := [name for name in scores if name not in known]:
        raise ConfigError(
            f"unknown score of a state {', '.join(unknown)}; known: {', '.join(known)}"
        )
    entries = [CHANNEL_SCORES[name] for name in scores]
    gradients = need_gradients(CHANNEL_SCORES, scores)
    dense = scorer.one_shot(gradients=gradients, measured=measured)
    sets: dict[Rule, Masks] = {}
    for sparsity in sparsities:
        in_order: dict[Callable[..., Tensor], dict[str, Sums]] = {}
        for score in entries:
            for seed in seeds if score.seeded else seeds[:1]:
                if score.static is None:
                    values = random_scores(scorer.sites, seed)
                elif score.in_order:
                    if score.static not in in_order:
                        in_order[score.static] = scorer.in_order(sparsity, score.static)
                    values = _apply(score.static, in_order[score.static])
                else:
                    values = _apply(score.static, dense)
                rule = channel_rule(score.name, sparsity, seed)
                sets[rule] = allocate(values, sparsity, uniform=score.uniform)
    return sets, dense


def choose_channels(
    model: nn.Module,
    sites: Sequence[AnySite],
    blocks: Tensor,
    rule: Rule,
    batch_tokens: int = 1024,
    *,
    bos: int | None = None,
) -> Masks:
    """The channels that one static rule keeps, chosen on calibration text.

    Args:
        model: A causal language model in eval mode.
        sites: Its sites; those that are no states are passed over.
        blocks: (n_blocks, tokens) int64 calibration text.
        rule: A static rule on state channels.
        batch_tokens: Tokens per forward pass, at least one block.
        bos: The token that is put before every block, and scored nowhere.

    Raises:
        ConfigError: the score is unknown, or the rule is another one.
        ModelError: a score is not finite, the model cannot read the blocks, or it has no state.

    Example:
        >>> from keepset import Rule, choose_channels, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/mamba2", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> rule = Rule("ghost-uniform", 0.5, "corpus", site="state", access="both")
        >>> masks = choose_channels(model, find_sites(model), blocks, rule)
        >>> int(masks["state.000"].sum())  # of 64 channels
        32
    """
    if rule != channel_rule(rule.score, rule.sparsity, rule.seed):
        raise ConfigError(
            "channels are chosen once for a rule with window corpus, site state and access both,"
            f" not for {describe(rule)}"
        )
    states = [site for site in sites if isinstance(site, StateSite)]
    if not states:
        raise ModelError(f"{describe(rule)}: {no_sites(model, 'state')}")
    scorer = Scorer(model, states, blocks, batch_tokens, bos=bos)
    sets, _ = keep_sets(scorer, [rule.score], [rule.sparsity], [rule.seed])
    return sets[rule]


def _apply(function: Callable[..., Tensor], sums: Mapping[str, Sums]) -> dict[str, Tensor]:
    return {key: function(site) for key, site in sums.items()}
