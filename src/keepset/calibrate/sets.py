"""Static keep sets: ranked from sums of activations, or read from a file of chosen channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepset.calibrate import activations
from keepset.calibrate.choice import channel_rule
from keepset.errors import ModelError
from keepset.files import archive
from keepset.rules.masks import Masks, rank_units
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import Moments, corpus_score, site_seed

FORMAT = "keepset-state-2"


class RankedSets:
    """The keep sets of all static rules on the inputs of linear maps, made when asked for.

    Units are ranked once per score and seed; one ranking serves every sparsity, since the sets are
    nested. A rule on another kind of site, or one that is not static, is no key.

    Example:
        >>> from keepset import RankedSets, Rule, collect_moments, cut_blocks, find_sites, load
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> blocks = cut_blocks(["The river is long. " * 40], tokenizer, block=32)
        >>> keep_sets = RankedSets(collect_moments(model, find_sites(model), blocks))
        >>> masks = keep_sets[Rule("magnitude", 0.9, "corpus")]
        >>> int(masks["ffn.000"].sum())  # of 512 neurons
        52
    """

    def __init__(self, moments: Mapping[str, Moments], site: str = "ffn") -> None:
        """Rank by those of `moments` that are of the kind `site`.

        They are the sums of each site (`keepset.calibrate.activations`).
        """
        self._moments = {key: sums for key, sums in moments.items() if key.startswith(f"{site}.")}
        self._site = site
        self._orders: dict[tuple[str, int], dict[str, Tensor]] = {}

    def __getitem__(self, rule: Rule) -> Masks:
        """The masks of `rule`: site key -> (n_units,) bool.

        Raises:
            KeyError: the rule is not static, or on another kind of site; or there are no sums.
            ConfigError: the score is unknown, or needs gradients that were not taken.
            ModelError: the sums that it needs are not finite.
        """
        if not self._moments or (rule.site, rule.window) != (self._site, "corpus"):
            raise KeyError(rule)
        masks = {}
        for key, order in self._order(rule.score, rule.seed).items():
            masks[key] = torch.zeros(len(order), dtype=torch.bool)
            masks[key][order[: n_kept(len(order), rule.sparsity)]] = True
        return masks

    def _order(self, score: str, seed: int) -> dict[str, Tensor]:
        """Site key -> its units, best first."""
        if (score, seed) not in self._orders:
            self._orders[score, seed] = {
                key: rank_units(self._score(score, key, seed)) for key in self._moments
            }
        return self._orders[score, seed]

    def _score(self, name: str, key: str, seed: int) -> Tensor:
        score = corpus_score(name, self._moments[key], seed=site_seed(seed, key))
        if not bool(torch.isfinite(score).all()):
            raise ModelError(
                f"NaN or infinity in the {name} score of {key}: no set can be chosen by it; sum up"
                " the calibration text again, with dtype: float32"
            )
        return score


def rank_file(path: str | Path, owner: Mapping[str, Any], site: str = "ffn") -> RankedSets:
    """The keep sets that an activation cache gives.

    Raises:
        CacheError: see `keepset.calibrate.activations.load`.
    """
    return RankedSets(activations.load(path, owner), site)


def save_sets(sets: Mapping[Rule, Masks], path: str | Path, owner: Mapping[str, Any]) -> None:
    """Write keep sets of channels, atomically, with what they belong to."""
    tensors = {
        f"{rule.score}|{rule.seed}|{rule.sparsity!r}|{key}": mask.to(torch.uint8)
        for rule, masks in sets.items()
        for key, mask in masks.items()
    }
    archive.save(tensors, path, FORMAT, owner)


def load_sets(path: str | Path, owner: Mapping[str, Any]) -> dict[Rule, Masks]:
    """Read keep sets of channels, and refuse those of another model, text or setting.

    Raises:
        CacheError: the file is damaged, or belongs to something else; the message says what.
    """
    sets: dict[Rule, dict[str, Tensor]] = {}
    for name, mask in archive.load(path, FORMAT, owner, "keep sets").items():
        score, seed, sparsity, key = name.split("|")
        rule = channel_rule(score, float(sparsity), int(seed))
        sets.setdefault(rule, {})[key] = mask.bool()
    return dict(sets)
