"""What the steps that run a model share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from keepset import kinds, models, text
from keepset.calibrate import activations
from keepset.calibrate.centres import collect_centres
from keepset.files import store
from keepset.files.store import PathLike as PathLike
from keepset.hold.inputs import rules_run_by
from keepset.kernels.mixers import provider_for
from keepset.measure.runner import Runner
from keepset.rules.kinds import KINDS
from keepset.rules.masks import KeepSets
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.run import provenance
from keepset.settings import Kernels


@dataclass(frozen=True)
class Run:
    """How a model is run; `kernels` is that section of the configuration."""

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int = 1024
    kernels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run, and the provenance of what it will compute."""

    runner: Runner
    tokenizer: Any
    info: Mapping[str, Any]
    provenance: dict[str, Any]
    dtype: str


def load(model: PathLike, run: Run, keep_sets: KeepSets | None = None) -> Loaded:
    """Load a prepared model; `keep_sets` is for static rules.

    Raises:
        ConfigError: an implementation that `run.kernels` names cannot run.
    """
    info = store.read_json(model)
    device = models.resolve_device(run.device)
    dtype = models.resolve_dtype(run.dtype, device)
    network, tokenizer = models.load(info, device, dtype)
    runner = Runner(
        network,
        kinds.find_sites(network),
        keep_sets=keep_sets,
        batch_tokens=run.batch_tokens,
        kernels=Kernels.model_validate(run.kernels),
        bos=info["bos"],
    )
    runner.selection.require(device)
    scan = provider_for(network, "scan", runner.selection)
    facts = {
        **provenance.environment(),
        "model": info["fingerprint"],
        "source": info["source"],
        "bos": info["bos"],
        "device": str(device),
        "dtype": str(dtype),
        "kernels": {"ffn": rules_run_by(runner.selection, device, dtype), "scan": scan},
    }
    return Loaded(runner, tokenizer, info, facts, str(dtype))


def give_centres(
    loaded: Loaded, blocks: text.Blocks, rules: Iterable[Rule | Recipe | None]
) -> None:
    """Take the centres of sites on calibration text, if the score of one of `rules` needs them."""
    scores = [KINDS[rule.site].scores[rule.score] for rule in rules if isinstance(rule, Rule)]
    if any(score.centred for score in scores):
        runner = loaded.runner
        sites = (runner.model, runner.sites)
        runner.centres = collect_centres(*sites, blocks.calibration, bos=runner.bos)


def cache_owner(
    model: Mapping[str, Any], blocks: text.Blocks, dtype: str, gradients: bool | None = None
) -> dict[str, Any]:
    """What an activation cache belongs to; without `gradients`, what keep sets belong to."""
    owner = {
        "model": model["fingerprint"],
        "bos": model["bos"],
        "text": blocks.fingerprint,
        "dtype": dtype,
    }
    return owner if gradients is None else {**owner, "gradients": gradients}


def load_moments(
    cache: PathLike, model: PathLike, blocks: text.Blocks, run: Run, gradients: bool
) -> dict[str, dict[str, Tensor]]:
    """Read an activation cache, and refuse it unless it is this model's and this text's."""
    dtype = str(models.resolve_dtype(run.dtype, models.resolve_device(run.device)))
    return activations.load(cache, cache_owner(store.read_json(model), blocks, dtype, gradients))


def static_sets(
    files: Mapping[str, PathLike],
    model: PathLike,
    blocks: text.Blocks,
    run: Run,
    chosen: Mapping[str, Mapping[str, Any]],
) -> KeepSets:
    """Read static keep sets, and refuse those of another model, text or setting.

    `files` and `chosen` are, for each kind of site, its file and what it must be chosen with.
    """
    dtype = str(models.resolve_dtype(run.dtype, models.resolve_device(run.device)))
    info = store.read_json(model)
    owner = cache_owner(info, blocks, dtype)
    return kinds.load_sets(files, owner, chosen)
