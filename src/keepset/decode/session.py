"""Hold a keep rule on a model that decodes. Everything is put back on exit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from keepset.calibrate.sets import RankedSets
from keepset.decode.dynamic import SparseDown, dynamic_forward, whole_block
from keepset.decode.position import Position
from keepset.decode.static import cut_blocks
from keepset.decode.whole import Alike, can_be_apart, standing_forward
from keepset.decode.windowed import HeldSite, Shared
from keepset.errors import ConfigError
from keepset.kernels import choice
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.torch_ffn import neuron_major
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule, describe
from keepset.rules.scores import NEURON_SCORES, Moments, decoding_names
from keepset.settings import Kernels
from keepset.sites import Site, find_sites

SCORES = decoding_names(NEURON_SCORES)
"""Scores that choose per token or window while decoding."""


@dataclass
class Session:
    """What a model has run under `sparse_decoding`.

    Attributes:
        rule: The rule that is held.
        paths: Tokens x sites by path: a path of the down projection (`keepset.kernels.dispatch`),
            `held` (gate, up and down of kept units only, copied together), or `triton-ffn` (the
            whole block by a kernel). Empty when dense, and where a static rule's cut weights run
            in torch.
        mixers: scan and state -> what runs them in Mamba-2 mixers; empty where there are none.
    """

    rule: Rule | None
    paths: Counter[str] = field(default_factory=Counter)
    mixers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def sparse_decoding(
    model: Any,
    rule: Rule | None,
    *,
    moments: Mapping[str, Moments] | None = None,
    sites: Sequence[Site] | None = None,
    given: Mapping[str, Tensor] | None = None,
    kernels: Kernels | str | None = None,
) -> Iterator[Session]:
    """Decode under `rule` without computing, or without reading, what it leaves out.

    Within the block the model may run as usual, through `model.generate` too; a context starts
    where its key-value cache is empty. The keep sets are those of `keepset.hold.inputs.Windows` on
    passages, and of `Static`, and outputs are equal to theirs up to rounding. Static and windowed
    rules stand in for weights, dynamic ones for the forward of the down projections, whose
    neuron-major copies take memory meanwhile. Of several paths the fastest one is taken, found by
    timing them on the model's own weights at the first token.

    Args:
        model: A causal language model in eval mode.
        rule: Dynamic, windowed with choice `causal`, or static; None is dense.
        moments: Site key -> calibration sums (`keepset.calibrate.activations`), for static rules.
        sites: The sites; found if left out.
        given: Site key -> (n_windows, n_units) bool, the sets of a windowed rule, known
            beforehand (replayed). Then choice may be `oracle`, and batches have one row.
        kernels: Which implementations may run (`keepset.kernels.choice`): the section `kernels`
            of a configuration, or "auto", "torch" or "triton"; what holds already if left out.

    Raises:
        ConfigError: the rule cannot be decoded under (the message says why), a static rule has
            no moments, or an implementation that is chosen by name cannot run here.
    """
    _check(rule, moments, given)
    sites = find_sites(model) if sites is None else sites
    session = Session(rule)
    with ExitStack() as stack:
        if kernels is not None:
            stack.enter_context(choice.choosing(kernels))
        choice.require(next(model.parameters()).device)
        session.mixers = stack.enter_context(mixer_kernels(model))
        if rule is None or rule.sparsity == 0:
            pass
        elif rule.window == "corpus":
            stack.enter_context(
                Runner(model, sites, keep_sets=RankedSets(moments or {})).holding(rule)
            )
            stack.enter_context(cut_blocks(sites, session.paths))
        else:
            sparse = SparseDown(_neuron_major(sites), session.paths)
            if rule.method == "dynamic" and given is None:
                _hold_dynamic(sites, rule, sparse, stack, session)
            else:
                _hold_windows(model, sites, Shared(rule, Position(), sparse), given, stack, session)
        yield session


def _hold_dynamic(
    sites: Sequence[Site], rule: Rule, sparse: SparseDown, stack: ExitStack, session: Session
) -> None:
    alike = Alike(f"dynamic {rule.score} kept={1 - rule.sparsity:.2g}", session.paths)
    for site in sites:
        plain = dynamic_forward(site, rule, sparse)
        if choice.ffn_kernels(sparse.rows(site).device) and can_be_apart(site):
            whole = whole_block(site, rule, sparse, plain, alike)
            stack.enter_context(whole.standing_in())
        else:
            stack.enter_context(standing_forward(site.down, plain))


def _hold_windows(
    model: nn.Module,
    sites: Sequence[Site],
    shared: Shared,
    given: Mapping[str, Tensor] | None,
    stack: ExitStack,
    session: Session,
) -> None:
    shared.paths = session.paths
    stack.enter_context(shared.position.following(model))
    for site in sites:
        if site.n_calls > 1:
            raise ConfigError(
                f"{site.name}: a block shared over depths cannot be decoded in windows; use a"
                " dynamic or a static rule"
            )
        held = HeldSite(site, shared, None if given is None else given[site.key])
        shared.sites.append(held)
        stack.enter_context(held.standing_in())


def _neuron_major(sites: Sequence[Site]) -> dict[str, Tensor]:
    """Neuron-major weights by site; depths that share parameters share the copy."""
    copies: dict[int, Tensor] = {}
    for site in sites:
        weight: Any = site.down.weight
        if id(weight) not in copies:
            copies[id(weight)] = neuron_major(site.down_weight())
    return {site.key: copies[id(site.down.weight)] for site in sites}


def _check(
    rule: Rule | None, moments: Mapping[str, Moments] | None, given: Mapping[str, Tensor] | None
) -> None:
    if rule is None:
        return
    if rule.window == "corpus":
        if not moments:
            raise ConfigError(
                "a static rule chooses on calibration text: give the activation cache of the model"
            )
        return
    name = describe(rule)
    if rule.score not in SCORES:
        raise ConfigError(
            f"{name}: score {rule.score} cannot choose while decoding; use {' or '.join(SCORES)}"
        )
    if rule.window == "sequence":
        raise ConfigError(f"{name}: a window has a number of tokens while the sequence still grows")
    if rule.choice == "oracle" and rule.window != 1 and given is None:
        raise ConfigError(
            f"{name}: an oracle window is chosen on tokens that are yet to come; use choice causal"
        )
