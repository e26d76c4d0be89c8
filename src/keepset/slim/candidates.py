"""Ways to leave parts out: each gives a recipe for every level of what is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from keepset.calibrate import experts as expert_sums
from keepset.calibrate.centres import collect_centres
from keepset.calibrate.channels import Scorer
from keepset.calibrate.choice import choose_channels
from keepset.calibrate.sets import RankedSets
from keepset.decode.layout import storable
from keepset.errors import ModelError
from keepset.rules.masks import top_mask
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import ghost
from keepset.sites.experts import ExpertSite
from keepset.sites.families import FAMILIES
from keepset.sites.ffn import Site
from keepset.sites.state import StateSite
from keepset.slim import budgets, sensitivity
from keepset.slim.savings import Save, site_bytes, state_bytes

SHARES = [round(0.05 * step, 2) for step in range(20)]
"""What a site may leave out."""
LEVELS = [round(0.025 * step, 3) for step in range(1, 39)]
"""What is tried: shares of the bytes that can be saved."""
_STATE_SHARES = [round(0.1 * step, 1) for step in range(10)]
Cost = Callable[[Recipe], float]
_SEARCHED = 1024
"""Tokens of calibration text that sensitivities and thresholds are measured on, at most."""


@dataclass(frozen=True)
class Candidate:
    """A way to leave parts out.

    Attributes:
        name: In the report and the journal.
        says: In a sentence.
        recipe: Level -> recipe; a level is the share that is left out of what can be.
        levels: Those that it can be asked for, ascending.
        rival: Whether it is shown beside the others, and never chosen.
    """

    name: str
    says: str
    recipe: Callable[[float], Recipe]
    levels: Sequence[float]
    rival: bool = False


def speed_sites(sites: Sequence[Any]) -> list[Site]:
    """The sites whose weights a token need not read: plain linear maps, each run once."""
    linear = [site for site in sites if isinstance(site, Site)]
    return storable(linear)


def per_token(model: Any, sites: Sequence[Any], blocks: Tensor, bos: int | None) -> list[Candidate]:
    """Candidates for speed: a little left out everywhere, chosen again at every token.

    Raises:
        ModelError: the model has no linear map that could be read in part.
    """
    linear = speed_sites(sites)
    if not linear:
        raise ModelError(
            f"{model.config.model_type}: no linear map of it can be read in part: its maps are"
            " shared by depths, packed, or of another kind; --save memory or size may do"
        )
    sizes = {site.key: site_bytes(site) for site in linear}
    everything = sum(sizes.values())
    few = blocks[: max(1, _SEARCHED // blocks.shape[1])]
    shared: dict[str, Any] = {"bos": bos}

    @cache
    def curves(score: str) -> dict[str, list[float]]:
        return sensitivity.loss_curves(model, linear, few, score, SHARES, **shared)

    @cache
    def scores(score: str) -> dict[str, Tensor]:
        return sensitivity.score_samples(model, linear, few[:4], score, **shared)

    def allotted(score: str, level: float) -> dict[str, float]:
        return budgets.cheapest(curves(score), SHARES, sizes, level * everything)

    def of_shares(
        shares: Mapping[str, float], score: str = "magnitude", of: Mapping[str, float] | None = None
    ) -> Recipe:
        used = [site for site in linear if shares[site.key] > 0]
        return Recipe(
            {site.key: Rule(score, shares[site.key], 1, site=site.kind) for site in used},
            centres={site.key: of[site.key] for site in used} if of else {},
        )

    def with_thresholds(level: float) -> Recipe:
        recipe = of_shares(allotted("magnitude", level))
        samples = scores("magnitude")
        least = {
            key: sensitivity.threshold(samples[key], rule.sparsity)
            for key, rule in recipe.rules.items()
        }
        return Recipe(recipe.rules, least)

    def one_threshold(level: float) -> Recipe:
        samples = scores("impact")
        least = _common_threshold(samples, sizes, level)
        shares = {
            key: min(float((values < least).float().mean()), sensitivity.MOST)
            for key, values in samples.items()
        }
        recipe = of_shares(shares, "impact")
        return Recipe(recipe.rules, dict.fromkeys(recipe.rules, least))

    @cache
    def centres() -> dict[str, float]:
        return collect_centres(model, linear, few, **shared)

    def off_centre(level: float) -> Recipe:
        return of_shares(allotted("magnitude", level), "centred", centres())

    @cache
    def by_layers(level: float) -> dict[str, float]:
        return sensitivity.layer_greedy(model, linear, few, "magnitude", sizes, level, **shared)

    gated = [s for s in linear if s.kind == "ffn" and s.gated and s.up]
    by_gate = sum(site_bytes(site, "gate") for site in gated)

    def gates(level: float) -> Recipe:
        share = level * everything / by_gate
        return Recipe({site.key: Rule("gate", share, 1) for site in gated})

    candidates = [
        Candidate(
            "loss, thresholds",
            "shares allotted by the loss that each site costs per byte; a calibrated threshold of"
            " |h| for each site",
            with_thresholds,
            LEVELS,
        ),
        Candidate(
            "loss",
            "shares allotted by the loss that each site costs per byte; the largest |h| of each"
            " token",
            lambda level: of_shares(allotted("magnitude", level)),
            LEVELS,
        ),
        Candidate(
            "loss, impact",
            "the same, units chosen by |h| times the norm of their weights (WINA)",
            lambda level: of_shares(allotted("impact", level), "impact"),
            LEVELS,
        ),
        Candidate(
            "loss, centred",
            "the same shares, units chosen by |h - c|, c the mode of a site's inputs, which units"
            " that are left out take (SCAP, arXiv:2412.07174)",
            off_centre,
            LEVELS,
        ),
        Candidate(
            "one threshold",
            "one threshold of |h| times the norm of its weights for all sites",
            one_threshold,
            LEVELS,
        ),
        Candidate(
            "equal shares",
            "the same share of every site, by |h|",
            lambda level: of_shares(budgets.equal(sizes, level)),
            LEVELS,
            rival=True,
        ),
        Candidate(
            "layer error (TEAL)",
            "shares allotted within each layer by the error of its output (TEAL, arXiv:2408.14690)",
            lambda level: of_shares(by_layers(level)),
            [level for level in LEVELS if level <= 0.6],
            rival=True,
        ),
    ]
    if gated:
        candidates.append(
            Candidate(
                "gate (CATS)",
                "the same share of every gated block, by the gate alone, which spares up and down"
                " (CATS, arXiv:2404.08763)",
                gates,
                [level for level in LEVELS if level * everything <= 0.95 * by_gate],
                rival=True,
            )
        )
    return candidates


def _common_threshold(
    samples: Mapping[str, Tensor], sizes: Mapping[str, int], level: float
) -> float:
    """The score below which `level` of all bytes lie."""
    low, high = 0.0, max(float(values[-1]) for values in samples.values())
    total = sum(sizes.values())
    for _ in range(40):
        middle = (low + high) / 2
        below = sum(sizes[k] * float((v < middle).float().mean()) for k, v in samples.items())
        low, high = (middle, high) if below < level * total else (low, middle)
    return low


def cut_for_good(
    model: Any,
    sites: Sequence[Any],
    texts: Mapping[str, Tensor],
    bos: int | None,
    save: Save,
    cost: Cost,
) -> list[Candidate]:
    """Candidates for memory and size: parts that are cut out of the weights, once.

    Args:
        model: The model.
        sites: Its sites.
        texts: What parts are chosen on: name -> (n_blocks, tokens) int64; the first is plain text.
        bos: The token that stands before every text.
        save: memory or size.
        cost: What a recipe costs, in shares of the budget.

    Raises:
        ModelError: nothing of the model can be cut for good.
    """
    name = model.config.get_text_config().model_type
    family = FAMILIES.get(name)
    states = [site for site in sites if isinstance(site, StateSite)]
    experts = [site for site in sites if isinstance(site, ExpertSite) and site.refusal is None]
    if family is None or family.state_size_key is None:
        states = []
    if not states and (save == "memory" or not experts):
        what = "no recurrent state" if save == "memory" else "neither experts nor a recurrent state"
        raise ModelError(
            f"{name}: --save {save}: it has {what} that can be cut out of a checkpoint; --save"
            " speed leaves parts out at every token"
        )
    candidates = []
    for score in ("ghost-uniform", "magnitude-uniform") if states else ():
        for source, blocks in texts.items():
            candidates.append(_state_cut(model, states, blocks, bos, score, source))
    for source, blocks in texts.items() if states else ():
        candidates.append(_allotted_cut(model, states, blocks, bos, source, cost))
    for score in ("impact", "magnitude") if experts and save == "size" else ():
        for source, blocks in texts.items():
            candidates.append(_expert_cut(model, experts, blocks, bos, score, source))
    return candidates


def _state_cut(
    model: Any, sites: list[StateSite], blocks: Tensor, bos: int | None, score: str, source: str
) -> Candidate:
    most = min(site.n_state for site in sites)

    @cache
    def recipe(level: float) -> Recipe:
        rule = Rule(score, level, "corpus", site="state", access="both")
        masks = choose_channels(model, sites, blocks, rule, bos=bos)
        kept = {key: [row.nonzero()[:, 0].tolist() for row in mask] for key, mask in masks.items()}
        return Recipe(dict.fromkeys(kept, rule), kept=kept)

    what = {"ghost-uniform": "measured impact (GHOST)", "magnitude-uniform": "size of weights"}
    return Candidate(
        f"state, {score}, on {source}",
        f"channels of the state cut once, by {what[score]} on {source}",
        recipe,
        [level for level in LEVELS if n_kept(most, level) < n_kept(most, level - 0.024)],
    )


def _allotted_cut(
    model: Any,
    sites: list[StateSite],
    blocks: Tensor,
    bos: int | None,
    source: str,
    cost: Cost,
) -> Candidate:
    """Each layer keeps as many of its channels, best first, as its measured costs allow."""
    sizes = {site.key: state_bytes(site) for site in sites}

    @cache
    def scores() -> dict[str, Tensor]:
        sums = Scorer(model, sites, blocks, 1024, bos=bos).one_shot()
        return {key: ghost(one) for key, one in sums.items()}

    def cut(shares: Mapping[str, float]) -> Recipe:
        rules, kept = {}, {}
        for site in sites:
            share = shares[site.key]
            if not share:
                continue
            mask = top_mask(scores()[site.key].float(), n_kept(site.n_state, share))
            kept[site.key] = [row.nonzero()[:, 0].tolist() for row in mask]
            rules[site.key] = Rule("ghost", share, "corpus", site="state", access="both")
        return Recipe(rules, kept=kept)

    @cache
    def costs() -> dict[str, list[float]]:
        nothing = {site.key: 0.0 for site in sites}
        return {
            key: [0.0, *(cost(cut({**nothing, key: share})) for share in _STATE_SHARES[1:])]
            for key in nothing
        }

    def recipe(level: float) -> Recipe:
        target = level * sum(sizes.values())
        return cut(budgets.cheapest(costs(), _STATE_SHARES, sizes, target))

    return Candidate(
        f"state, allotted, on {source}",
        "channels of the state cut once, by their impact (GHOST) within a layer, shares of layers"
        f" allotted by what each cut costs, on {source}; layers differ in size, so that"
        " keepset alone reads the checkpoint",
        recipe,
        LEVELS,
    )


def _expert_cut(
    model: Any, sites: list[ExpertSite], blocks: Tensor, bos: int | None, score: str, source: str
) -> Candidate:
    n = min(site.n_units for site in sites)

    @cache
    def sums() -> RankedSets:
        return RankedSets(expert_sums.collect_expert_sums(model, sites, blocks, bos=bos), "expert")

    def recipe(level: float) -> Recipe:
        rule = Rule(score, level, "corpus", site="expert")
        kept = {key: mask.nonzero()[:, 0].tolist() for key, mask in sums()[rule].items()}
        return Recipe(dict.fromkeys(kept, rule), kept=kept)

    return Candidate(
        f"experts, {score}, on {source}",
        f"experts cut once, by {score} on {source}",
        recipe,
        sorted({round(left / n, 6) for left in range(1, n)}),
    )


def packed(texts: Sequence[Sequence[int]], block: int) -> Tensor:
    """Token ids of passages, joined and cut into blocks: (n_blocks, block) int64."""
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int64)
    return ids[: len(ids) // block * block].view(-1, block)
