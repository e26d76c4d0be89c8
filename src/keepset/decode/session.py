"""Hold a keep rule on a model that decodes. Everything is put back on exit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from keepset import kinds
from keepset.calibrate.sets import RankedSets
from keepset.decode.choice import check_rule, choices_of, recipe_of
from keepset.decode.dynamic import dynamic_downs
from keepset.decode.position import Position
from keepset.decode.recipe import linear_sites, sites_held
from keepset.decode.static import static_blocks
from keepset.decode.windowed import running_windows
from keepset.errors import ConfigError, ModelError
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.kinds.recipes import kept_masks
from keepset.models import still_to_do
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import Moments
from keepset.settings import Kernels
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.families import no_sites
from keepset.sites.ffn import Site, find_ffn_sites


@dataclass
class Session:
    """What a model has run under `sparse_decoding`.

    Attributes:
        rule: The rule that is held.
        selection: Which kernels may run; what was timed and refused.
        paths: Tokens x sites by path: a path of the down projection (`keepset.kernels.dispatch`),
            `numba` (chosen and projected by one kernel, or, of long prompts, masked by one),
            `held` (gate, up and down of kept units only, copied together), `triton-ffn` (the
            whole block by a kernel), or `masked` (sites of a recipe that no kernel runs). Empty
            when dense, and where a static rule's cut weights run in torch.
        mixers: scan and state -> what runs them in Mamba-2 mixers; empty where there are none.
    """

    rule: Rule | Recipe | None
    selection: Selection
    paths: Counter[str] = field(default_factory=Counter)
    mixers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def sparse_decoding(
    model: Any,
    rule: Rule | Recipe | None,
    *,
    moments: Mapping[str, Moments] | None = None,
    sites: Sequence[Site] | None = None,
    given: Mapping[str, Tensor] | None = None,
    kernels: Kernels | Selection | str | None = None,
    bos: int | None = None,
) -> Iterator[Session]:
    """Decode under `rule` without computing, or without reading, what it leaves out.

    Within the block the model may run as usual, through `model.generate` too; a context starts
    where its key-value cache is empty. The keep sets are those of `keepset.hold.inputs.Windows` on
    passages, and of `Static`, and outputs are equal to theirs up to rounding: the first token of a
    context is run dense. Static and windowed rules stand in for weights, dynamic ones for the
    forward of the down projections, whose neuron-major copies take memory until exit. Under a
    static rule a prompt runs masked, as its first token needs all weights. Of several paths the
    fastest is taken; they are timed on the model's own weights at the first token.

    Under a recipe every site has a rule of its own, dynamic or static. On a CPU the weights of its
    sites are stored unit by unit until exit, in the place of the usual layout: there is no second
    copy, and a prompt, which runs masked, reads them as they are.

    Args:
        model: A causal language model in eval mode.
        rule: Dynamic, windowed with choice `causal`, or static; None is dense. On neurons (`ffn`),
            or a dynamic one on inputs of linear maps. Or a recipe.
        moments: Site key -> calibration sums (`keepset.calibrate.activations`), for static rules.
        sites: The model's sites, of which those of the rule's kind count; found if left out. For a
            recipe, or a rule on inputs: all sites of the linear maps.
        given: Site key -> (n_windows, n_units) bool, the sets of a windowed rule, known
            beforehand (replayed). Then choice may be `oracle`, and batches have one row.
        kernels: Which implementations may run: the section `kernels` of a configuration, or
            "auto" (the default), "torch" or "triton". A `Selection` is shared with whoever else
            was given it: a path is timed once for all.
        bos: The token that every context opens with, if there is one: windows are counted from the
            token after it.

    Raises:
        ConfigError: the rule cannot be decoded under (the message says why; neurons of routed
            experts follow static rules alone), a static rule has no moments, or an implementation
            that is chosen by name cannot run here.
        ModelError: the model has no FFN neurons; or a recipe belongs to another model.

    Example:
        >>> from keepset import Rule, load, sparse_decoding
        >>> model, tokenizer = load("specimens/relu", dtype="float32")
        >>> prompt = tokenizer("The river", return_tensors="pt")
        >>> with sparse_decoding(model, Rule("magnitude", 0.9, 1), kernels="torch") as session:
        ...     ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        >>> sum(session.paths.values()) > 0  # tokens x layers, by the path that ran
        True
    """
    selection = Selection.of(kernels)
    selection.require(next(model.parameters()).device)
    session = Session(rule, selection)
    held: AbstractContextManager[None]
    if isinstance(rule, Recipe):
        # Found now: finding them runs the model, with mixers of its own.
        sites = find_sites(model) if sites is None else sites
        held = _recipe_held(model, still_to_do(model, rule), sites, session, bos)
    elif rule is not None and rule.site == "input":
        sites = linear_sites(model) if sites is None else sites
        recipe = recipe_of(rule, sites, moments, bos)
        held = _recipe_held(model, recipe, sites, session, bos)
    else:
        held = _rule_held(model, rule, moments, sites, given, session, bos)
    with mixer_kernels(model, selection) as session.mixers, held:
        yield session


@contextmanager
def _recipe_held(
    model: Any, recipe: Recipe, sites: Sequence[Any], session: Session, bos: int | None
) -> Iterator[None]:
    """Hold a recipe: its linear maps with less work, and what else it leaves out by masks."""
    if recipe.bos != bos:
        raise ConfigError(
            f"the recipe was made with {_named(recipe.bos)} before every text, and here it is"
            f" {_named(bos)}; set bos (--bos) as it was then"
        )
    masks = kept_masks({site.key: site for site in sites}, recipe)
    linear = [site for site in sites if isinstance(site, Site)]
    choices = choices_of(linear, recipe, masks)
    others: dict[str, list[Any]] = {}
    for site in sites:
        if site.key in recipe.rules and not isinstance(site, Site):
            if recipe.rules[site.key].method != "static":
                raise ConfigError(f"{site.key}: only a static rule can be decoded under there")
            others.setdefault(site.kind, []).append(site)
    with ExitStack() as stack:
        for kind, held in others.items():
            stack.enter_context(kinds.of(kind).hold_static(model, held, masks, session.selection))
        stack.enter_context(sites_held(model, linear, choices, session.paths, session.selection))
        yield


def _named(bos: int | None) -> str:
    return "no BOS token" if bos is None else f"token {bos}"


@contextmanager
def _rule_held(
    model: Any,
    rule: Rule | None,
    moments: Mapping[str, Moments] | None,
    sites: Sequence[Site] | None,
    given: Mapping[str, Tensor] | None,
    session: Session,
    bos: int | None,
) -> Iterator[None]:
    """Hold one rule on all neurons; arguments and errors as in `sparse_decoding`."""
    check_rule(rule, moments, given)
    if rule is None or rule.sparsity == 0:
        yield
        return
    if sites is None:
        sites = find_ffn_sites(model)
    sites = [site for site in sites if site.kind == rule.site]
    if not sites:
        raise ModelError(f"{describe(rule)}: {no_sites(model, rule.site)}")
    _refuse_routed(rule, sites)
    selection, paths = session.selection, session.paths
    if rule.window == "corpus":
        held = static_blocks(model, sites, RankedSets(moments or {})[rule], paths, selection)
    elif rule.method == "dynamic" and given is None:
        held = dynamic_downs(model, sites, rule, paths, selection)
    else:
        position = Position(n_bos=int(bos is not None))
        held = running_windows(model, sites, rule, given, paths, selection, position)
    with held:
        yield


def _refuse_routed(rule: Rule, sites: Sequence[Site]) -> None:
    routed = next((site for site in sites if isinstance(site, ExpertNeurons)), None)
    if rule.sparsity and rule.window != "corpus" and routed is not None:
        raise ConfigError(
            f"{describe(rule)}: {routed.name} holds routed experts, whose neurons can be chosen"
            " while decoding by static rules alone; passages run under every rule"
        )
