"""What a specimen must show to count as a success, measured on held-out text.

A specimen that misses a gate is still shipped and reported: its model card says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset.errors import TextError
from keepset.hold.inputs import watching
from keepset.hold.memories import scanning
from keepset.hold.state import StateMask
from keepset.measure.runner import Runner, perplexity
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.experts import ExpertSite, find_expert_sites
from keepset.sites.ffn import Site, find_ffn_sites
from keepset.sites.state import find_state_sites
from keepset.text import Item, encode_items

RECALL = 0.80
"""Least share of correct answers with 1 to 4 facts."""
SPREAD = 1.15
"""Largest ratio of the perplexities of the FFN specimens to the best of the dense ones."""
ZEROS = 0.80
"""Least share of natural zeros of a ReLU FFN, mean over layers."""
L1_ZEROS = 0.95
"""The same with an L1 penalty, in every layer."""
L1_COST = 1.05
"""Largest perplexity with an L1 penalty, relative to without."""
STATE_COST = 1.30
"""Least perplexity without the recurrent state, relative to with it; or recall at chance."""
FFN_COST = 1.50
"""Least perplexity without the FFN, relative to with it: one that is idle is no scratch-work."""
EXPERT_SHARE = 0.02
"""Least share of tokens that are routed to an expert, in every layer."""
AT_CHANCE = 0.05
"""Recall that counts as chance: guessing one of 64 things is right 1.6% of the time."""
ROUND_TRIP = 0.001
"""Largest relative change of perplexity when weights are stored in float16."""


_DENSE = ("relu", "relu-l1", "swiglu")
"""The specimens that are compared with one another; `moe` is compared with their best."""


@dataclass
class Measurement:
    """What one specimen does on held-out text."""

    n_parameters: int
    perplexity: float
    perplexity_float16: float
    recall: dict[str, float]
    """Share of correct answers by number of facts."""
    zeros: dict[str, float] = field(default_factory=dict)
    """Share of FFN activations that are exactly zero, by site."""
    perplexity_without_state: float | None = None
    recall_without_state: float | None = None
    perplexity_without_ffn: float | None = None
    """With h of every FFN zero, also that of routed experts."""
    experts: dict[str, list[float]] = field(default_factory=dict)
    """Share of tokens that are routed to each expert, by site."""


@dataclass(frozen=True)
class Gate:
    """One condition."""

    specimen: str
    name: str
    value: float
    bound: str
    passed: bool


def measure_specimen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Tensor,
    items: Sequence[Item],
    batch_tokens: int = 2048,
) -> Measurement:
    """Measure a specimen.

    Args:
        model: The specimen, float32.
        tokenizer: Its tokenizer.
        rows: (n, tokens) int64, held-out text.
        items: Recall items; `n_facts` of each is set, and of some to 4 or less.
        batch_tokens: Tokens per forward pass.

    Raises:
        TextError: the items are others.
    """
    facts = [item.n_facts for item in items]
    if None in facts or not any(n is not None and n <= 4 for n in facts):
        raise TextError("gates need items of recall, some with 1 to 4 facts; add them to a task")
    sites, states = find_ffn_sites(model), find_state_sites(model)
    runner = Runner(model, [*sites, *find_expert_sites(model), *states], batch_tokens=batch_tokens)
    half = copy.deepcopy(model).half().float()
    measurement = Measurement(
        n_parameters=model.num_parameters(),
        perplexity=perplexity(runner, rows),
        perplexity_float16=perplexity(Runner(half, [], batch_tokens=batch_tokens), rows),
        recall=_recall(runner, tokenizer, items),
        zeros=_zeros(runner, rows),
        experts=_expert_shares(runner, rows),
    )
    if sites:
        with watching(model, sites, lambda _, h: torch.zeros_like(h)):
            measurement.perplexity_without_ffn = perplexity(runner, rows)
    if states:
        none = {s.key: torch.zeros(s.n_groups, s.n_state, dtype=torch.bool) for s in states}
        with scanning(model, states, StateMask(none)):
            measurement.perplexity_without_state = perplexity(runner, rows)
            measurement.recall_without_state = _mean(_recall(runner, tokenizer, items))
    return measurement


def _recall(
    runner: Runner, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> dict[str, float]:
    correct = runner.last_words(encode_items(items, tokenizer))["correct"]
    facts = [item.n_facts for item in items]
    return {str(n): float(share) for n, share in correct.groupby(facts).mean().items()}


def _zeros(runner: Runner, rows: Tensor) -> dict[str, float]:
    # A routed expert's are zero wherever it is not chosen.
    sites = [site for site in runner.sites_of("ffn") if not isinstance(site, ExpertNeurons)]
    counts = {site.key: torch.zeros(2, dtype=torch.float64) for site in sites}

    def action(site: Site, h: Tensor) -> None:
        counts[site.key] += torch.tensor([float((h == 0).sum()), float(h.numel())]).double()

    with watching(runner.model, sites, action):
        runner.block_nll(rows)
    return {key: float(zeros / total) for key, (zeros, total) in counts.items()}


def _expert_shares(runner: Runner, rows: Tensor) -> dict[str, list[float]]:
    sites: list[ExpertSite] = runner.sites_of("expert")
    if not sites:
        return {}
    counts = {site.key: torch.zeros(site.n_units) for site in sites}

    def counting(key: str) -> Callable[..., None]:
        def count(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> None:
            chosen = output[2]
            counts[key] += chosen.flatten().bincount(minlength=len(counts[key]))

        return count

    with ExitStack() as stack:
        for site in sites:
            hook = site.router.register_forward_hook(counting(site.key))
            stack.callback(hook.remove)
        runner.block_nll(rows)
    return {key: (count / rows.numel()).tolist() for key, count in counts.items()}


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def check_gates(measured: Mapping[str, Measurement]) -> list[Gate]:
    """Compare every specimen with its gates.

    Args:
        measured: Specimen name -> what it does. `relu`, `relu-l1` and `swiglu` are compared with
            one another where they are present, and `moe` with the best of them.
    """
    gates = []
    for name, measurement in measured.items():
        few = {n: share for n, share in measurement.recall.items() if int(n) <= 4}
        gates.append(_least(name, "recall with 1 to 4 facts", _mean(few), RECALL))
        change = abs(measurement.perplexity_float16 / measurement.perplexity - 1)
        gates.append(_most(name, "float16 changes perplexity by", change, ROUND_TRIP))
        if measurement.perplexity_without_ffn is not None:
            ratio = measurement.perplexity_without_ffn / measurement.perplexity
            gates.append(_least(name, "perplexity without the FFN", ratio, FFN_COST))
        if measurement.experts:
            least = min(map(min, measurement.experts.values()))
            gates.append(_least(name, "tokens of the expert used least", least, EXPERT_SHARE))
        stateless, recall = measurement.perplexity_without_state, measurement.recall_without_state
        if stateless is not None and recall is not None:
            ratio = stateless / measurement.perplexity
            text = f"at least {STATE_COST:g}, or recall at chance ({AT_CHANCE:g})"
            passed = ratio >= STATE_COST or recall <= AT_CHANCE
            gates.append(Gate(name, "perplexity without the state", ratio, text, passed))
            gates.append(Gate(name, "recall without the state", recall, text, passed))
    return [*gates, *_ffn_gates(measured)]


def _ffn_gates(measured: Mapping[str, Measurement]) -> list[Gate]:
    gates = []
    family = {n: measured[n].perplexity for n in (*_DENSE, "moe") if n in measured}
    best = min((value for name, value in family.items() if name in _DENSE), default=math.inf)
    for name, value in family.items() if math.isfinite(best) else ():
        ratio = value / best
        gates.append(_most(name, "perplexity over the best FFN specimen's", ratio, SPREAD))
    if "relu" in measured:
        zeros = measured["relu"].zeros
        gates.append(_least("relu", "natural zeros, mean over layers", _mean(zeros), ZEROS))
    if "relu-l1" in measured:
        zeros = measured["relu-l1"].zeros
        least = min(zeros.values())
        gates.append(_least("relu-l1", "natural zeros, smallest layer", least, L1_ZEROS))
        if "relu" in measured:
            ratio = family["relu-l1"] / family["relu"]
            gates.append(_most("relu-l1", "perplexity over relu's", ratio, L1_COST))
    return gates


def _least(specimen: str, name: str, value: float, bound: float) -> Gate:
    return Gate(specimen, name, value, f"at least {bound:g}", value >= bound)


def _most(specimen: str, name: str, value: float, bound: float) -> Gate:
    return Gate(specimen, name, value, f"at most {bound:g}", value <= bound)


def gates_text(gates: Sequence[Gate]) -> str:
    """One line per gate, with pass or fail."""
    lines = [
        f"{'pass' if gate.passed else 'FAIL'}  {gate.specimen:<8}  {gate.name}: {gate.value:.4g}"
        f" ({gate.bound})"
        for gate in gates
    ]
    missed = sum(not gate.passed for gate in gates)
    return "\n".join([*lines, f"{len(gates) - missed} passed, {missed} failed"])


def as_json(measured: Mapping[str, Measurement], gates: Sequence[Gate]) -> dict[str, Any]:
    """Both, ready for JSON."""
    return {
        "measured": {name: asdict(measurement) for name, measurement in measured.items()},
        "gates": [asdict(gate) for gate in gates],
    }
