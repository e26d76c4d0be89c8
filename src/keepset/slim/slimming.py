"""`keepset slim`: from a model, text and a budget to a recipe, a checkpoint and a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from keepset import kinds
from keepset.decode.generate import compare
from keepset.errors import ConfigError, KeepsetError
from keepset.files import store
from keepset.hold.cut import load_pruned, save_pruned
from keepset.kernels.clock import clock_name
from keepset.kernels.selection import Selection
from keepset.kinds.recipes import all_kept, kept_masks
from keepset.measure.runner import Runner
from keepset.models import owner_of, still_to_do, weights_digest
from keepset.rules.recipe import Recipe
from keepset.settings.recipes import write_recipe
from keepset.slim import candidates as ways, page, savings
from keepset.slim.quality import Meter, Part, Quality, need_enough
from keepset.slim.search import LOOKS, Search, Trial, as_rows, clock, lesson
from keepset.slim.settings import Budget
from keepset.slim.texts import Texts, digest
from keepset.speed.decoding import WrongTokensError, decode_both

_FEW_ITEMS = 96
_GAINS = 1.02
"""Below this, what a recipe gains is within the noise of timing."""
_RELOADED = {torch.float32: 1e-4}
_RELOADED_LOW_PRECISION = 5e-3


@dataclass(frozen=True)
class Model:
    """A model that is made slimmer.

    Attributes:
        network: It.
        tokenizer: Its own.
        name: For readers.
        bos: The token that stands before every text.
        revision: Of the hub's repository, where it is from there.
    """

    network: Any
    tokenizer: Any
    name: str
    bos: int | None = None
    revision: str | None = None


@dataclass
class Outcome:
    """What was found.

    Attributes:
        recipe: As it is written.
        trial: The chosen one, on the report's text.
        trials: The frontier, on the report's text.
        rates: Tokens per second, dense and slim; empty where no time was taken.
    """

    recipe: Recipe
    trial: Trial
    trials: list[Trial]
    rates: dict[str, float] = field(default_factory=dict)


def slim(
    model: Model,
    texts: Texts,
    budget: Budget,
    folder: Path,
    *,
    say: Callable[[str], None] = print,
    comparisons: bool = True,
    tokens: int = 48,
    batch_tokens: int = 1024,
) -> Outcome:
    """Find the recipe that saves most within a budget, and write it, a checkpoint and a report.

    A run that was stopped goes on where it was: what was measured is in the folder.

    Args:
        model: The model; what is cut for good is cut in it.
        texts: What to find it on, and what to report on.
        budget: What may be lost, how surely, and what is to be saved.
        folder: Where recipe.yaml, the checkpoint, report.html, report.png and frontier.parquet go.
        say: Told what is tried.
        comparisons: Whether the papers' ways are measured at the same bytes.
        tokens: Decoded to measure speed.
        batch_tokens: Tokens per forward pass.

    Raises:
        ModelError: the model has no part that can be left out, or its cut copy differs.
        TextError: text or items are too few to decide; the message says how many are needed.
        KeepsetError: no recipe meets the budget; the message says what the best was.
    """
    need_enough(texts.report, budget)
    network = model.network
    sites = kinds.find_sites(network)
    runner = Runner(network, sites, batch_tokens=batch_tokens, bos=model.bos)
    recipe_owner = owner_of(network, model.name, model.revision)
    owner = {
        "model": recipe_owner["weights"],
        "dtype": str(network.dtype),
        "text": digest(texts),
        "bos": model.bos,
    }
    meter = Meter(runner, folder / "journal", owner)
    search = Search(meter, sites, budget, texts.search, say)
    if not search.total:
        raise ConfigError(
            f"{model.name}: --save {budget.save}: the model has no {savings.NAMES[budget.save]}"
        )
    say("measuring the dense model, and what its parts do")
    candidates = _candidates(model, sites, texts, budget, meter)
    found = search.find(candidates)
    chosen, looks = search.check(found, texts.report)
    shown = candidates if comparisons else []
    trials = search.frontier(chosen, shown, texts.report)
    if meter.remembered:
        say(f"{meter.remembered} measurements were remembered from a run before")
    outcome = Outcome(chosen.recipe, chosen, trials)
    if budget.save == "speed":
        outcome.rates = _rates(model, texts, chosen.recipe, tokens, say)
    _write(model, texts, budget, folder, search, outcome, recipe_owner, looks)
    say(f"done in {clock(search.seconds)}: {folder}/report.html")
    return outcome


def _candidates(
    model: Model, sites: Sequence[Any], texts: Texts, budget: Budget, meter: Meter
) -> list[ways.Candidate]:
    network = model.network
    if budget.save == "speed":
        return ways.per_token(network, sites, texts.calibration, model.bos)
    sources = {"text": texts.calibration}
    if texts.search.items:
        block = texts.calibration.shape[1]
        passages = ways.packed([item.ids for item in texts.search.items], block)
        if len(passages):
            sources["the task"] = passages
            sources["text and task"] = torch.cat([texts.calibration, passages])
    cost = _cost(meter, texts, budget)
    return ways.cut_for_good(network, sites, sources, model.bos, budget.save, cost)


def _cost(meter: Meter, texts: Texts, budget: Budget) -> ways.Cost:
    """What a recipe costs on calibration text and items of the search, in shares of the budget.

    The loss of text, and the probability of the right answers: accuracy moves in steps, too coarse
    to compare the parts of one layer by.
    """
    text = Part("calibration", texts.calibration, torch.zeros(len(texts.calibration)))
    items = Part("few items", text.blocks[:0], text.documents[:0], texts.search.items[:_FEW_ITEMS])
    predicted = meter.runner.n_predicted(text.blocks)

    def cost(recipe: Recipe) -> float:
        total = 0.0
        if budget.perplexity is not None:
            rise = sum(meter.measure(recipe, text)["nll"]) - sum(meter.measure(None, text)["nll"])
            total += max(0.0, rise / predicted) / math.log1p(budget.perplexity)
        if budget.points is not None:
            sure = [sum(meter.measure(one, items)["sure"]) for one in (None, recipe)]
            lost = (sure[0] - sure[1]) / len(items.items)
            total += max(0.0, 100 * lost) / budget.points
        return total

    return cost


def _rates(
    model: Model, texts: Texts, recipe: Recipe, tokens: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Tokens per second, token by token in turn: dense, and slim, whose tokens are the recipe's.

    Empty where few digits make the tokens others: then no speed is known.

    `dense` is the model as it is; `dense by kernels` reads all weights by the kernels of the slim
    one: what the recipe itself gains is over that.
    """
    network = model.network
    prompt = texts.report.blocks[:1, :32].to(next(network.parameters()).device)
    shared: Any = {"kernels": Selection.of(None), "bos": model.bos}
    try:
        dense, sparse = decode_both(network, prompt, recipe, tokens, **shared)
    except WrongTokensError as error:
        # With few digits the order of a sum decides which unit is kept, and layers carry it on.
        if network.dtype in _RELOADED:
            raise
        say(f"{error}; in {network.dtype} this is rounding: --dtype float32 measures speed")
        return {}
    _, whole = compare(network, prompt, tokens, Recipe({}, bos=model.bos), **shared)
    rates = {"dense": dense.rate, "dense by kernels": whole.rate, "slim": sparse.rate}
    say("decoding, tokens/s: " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()))
    return rates


def _write(
    model: Model,
    texts: Texts,
    budget: Budget,
    folder: Path,
    search: Search,
    outcome: Outcome,
    owner: Mapping[str, Any],
    looks: int,
) -> None:
    chosen, network = outcome.trial, model.network
    sites = {site.key: site for site in search.meter.runner.sites}
    shares = page.shares_by_part(chosen.recipe, sites)
    parameters = network.num_parameters()
    cut = _cut(network, chosen.recipe)
    save_pruned(network, model.tokenizer, folder / "model")
    quality = chosen.quality
    facts = {
        "budget": asdict(budget),
        "text": texts.label,
        "candidate": chosen.candidate.name,
        "level": chosen.level,
        "saved": round(chosen.saved, 5),
        "quality": {k: round(v, 6) for k, v in asdict(quality).items() if not math.isnan(v)},
        "looks": looks,
        "tokens_per_second": {k: round(v, 3) for k, v in outcome.rates.items()},
    }
    recipe = replace(
        chosen.recipe,
        model=owner,
        cut=weights_digest(network) if cut else None,
        bos=model.bos,
        found=facts,
    )
    _check_reloaded(model, recipe, folder / "model", search.meter, texts.report)
    write_recipe(recipe, folder / "recipe.yaml")
    outcome.recipe = recipe
    rows = pd.DataFrame(as_rows(outcome.trials, chosen))
    store.write_table(rows, folder / "frontier.parquet", facts)
    notes = [
        lesson(budget, chosen),
        f"Chosen: {chosen.candidate.says}. The bounds of the chosen recipe hold with"
        f" {100 * budget.confidence:g}% confidence each, adjusted for checking up to {LOOKS}"
        f" recipes on text that the search never saw ({looks} needed); those of the others are not"
        " adjusted.",
        f"Text: {texts.label}; {texts.report.blocks.numel():,} tokens to report on,"
        f" {texts.search.blocks.numel():,} to search on, {texts.calibration.numel():,} to calibrate"
        f" on. The sample is {'documents' if texts.report.by_document else 'blocks'}.",
    ]
    if budget.save == "speed" and not outcome.rates:
        notes.append(
            f"No speed is reported: decoded in {network.dtype}, a token is not the one that the"
            " masked model gives. Which units are kept depends on the last digit there; run it with"
            " --dtype float32 to measure."
        )
    if rates := outcome.rates:
        gain = rates["slim"] / rates["dense by kernels"]
        if gain < _GAINS:
            notes.append(
                f"On this machine the recipe decodes {gain:.2f} times as fast as the dense model by"
                " the same kernels: it gains nothing over an empty recipe, which loses nothing."
                " Larger models gain more; see docs/BENCHMARKS.md."
            )
    lines = _facts(model, budget, chosen, quality, outcome.rates, parameters)
    figure = page.draw(rows, shares, budget.save, budget.perplexity)
    page.write(folder, lines, notes, rows, figure)


def _facts(
    model: Model,
    budget: Budget,
    chosen: Trial,
    quality: Quality,
    rates: Mapping[str, float],
    parameters: int,
) -> list[tuple[str, str]]:
    facts = [
        ("", f"{model.name}, slimmer"),
        ("budget", budget.words()),
        ("perplexity / dense", f"{quality.ratio:.4f}, at most {quality.ratio_high:.4f}"),
    ]
    if not math.isnan(quality.lost):
        facts.append(("points lost", f"{quality.lost:.1f}, at most {quality.lost_high:.1f}"))
    facts.append((savings.NAMES[budget.save], f"{100 * chosen.saved:.1f}% saved"))
    if rates:
        facts.append(
            (
                f"decoding, tokens/s ({clock_name()}, {torch.get_num_threads()} thread(s))",
                f"{rates['dense']:.1f} dense, {rates['dense by kernels']:.1f} dense by the same"
                f" kernels, {rates['slim']:.1f} slim: {rates['slim'] / rates['dense']:.2f} and"
                f" {rates['slim'] / rates['dense by kernels']:.2f} times",
            )
        )
    after = model.network.num_parameters()
    facts.append(("parameters of the checkpoint", f"{after:,} of {parameters:,}"))
    return facts


def _cut(network: Any, recipe: Recipe) -> bool:
    """Cut what static rules leave out, in place; whether there was something."""
    static = recipe.of_method("static")
    by_kind: dict[str, dict[str, Tensor]] = {}
    for kind in dict.fromkeys(rule.site for rule in static.values()):
        sites = {site.key: site for site in kinds.of(kind).find(network)}
        part = Recipe(
            {key: rule for key, rule in static.items() if rule.site == kind},
            kept={key: recipe.kept[key] for key, rule in static.items() if rule.site == kind},
        )
        everything = {key: all_kept(site) for key, site in sites.items()}
        by_kind[kind] = everything | kept_masks(sites, part)
    for kind, masks in by_kind.items():
        kinds.of(kind).cut(network, masks)
    return bool(static)


def _check_reloaded(model: Model, recipe: Recipe, folder: Path, meter: Meter, report: Part) -> None:
    """Refuse a checkpoint that, read again, does not do what the report says.

    Raises:
        KeepsetError: it does not.
    """
    network = model.network
    again = load_pruned(folder, dtype=network.dtype, device=next(network.parameters()).device)
    left = still_to_do(again, recipe)
    runner = Runner(
        again, kinds.find_sites(again), batch_tokens=meter.runner.batch_tokens, bos=model.bos
    )
    measured = torch.tensor(meter.measure(recipe, report)["nll"], dtype=torch.float64)
    reloaded = runner.block_nll(report.blocks, left)
    error = abs(float(reloaded.sum() / measured.sum()) - 1)
    if not error <= _RELOADED.get(network.dtype, _RELOADED_LOW_PRECISION):
        raise KeepsetError(
            f"{folder}: read again, the checkpoint's loss differs from the report's by"
            f" {error:.1e}; this is a fault of keepset, and the checkpoint is not to be used"
        )
