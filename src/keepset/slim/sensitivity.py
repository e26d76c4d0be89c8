"""What leaving out units of a site costs, measured on calibration text: the loss, and the layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.hold.contexts import with_bos
from keepset.hold.inputs import output_norms, watching
from keepset.kinds.recipes import hold_recipe
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import NEURON_SCORES, token_score
from keepset.sites.ffn import Site, decoder_layers

MOST = 0.95
"""The largest share that is left out of a site."""

_STEP = 0.05
"""The bytes of a step of the greedy allotment, as a share of a layer's."""


def _norms(site: Site, score: str) -> Tensor | None:
    return output_norms(site) if NEURON_SCORES[score].needs_norms else None


def loss_curves(
    model: Any,
    sites: Sequence[Site],
    blocks: Tensor,
    score: str,
    shares: Sequence[float],
    *,
    bos: int | None = None,
) -> dict[str, list[float]]:
    """What the loss should rise by where the units of least score are left out of one site.

    With g = dL/dh and d the change of h at token t, half the mean of (g d)^2: the second order of
    the loss by the empirical Fisher information (LeCun et al. 1990; Theis et al. 2018), of the
    whole change of a token at once. The first token of a context, which runs dense, is left out.

    Args:
        model: A causal language model in eval mode.
        sites: Sites whose units are inputs of linear maps.
        blocks: (n_blocks, tokens) int64, calibration text.
        score: What units are chosen by; it decodes.
        shares: Shares left out, ascending.
        bos: The token that is put before every block.

    Returns:
        Site key -> nats per token at each share.
    """
    sums = {site.key: torch.zeros(len(shares), dtype=torch.float64) for site in sites}
    norms = {site.key: _norms(site, score) for site in sites}
    first = 1

    def action(site: Site, h: Tensor) -> Tensor:
        values = h.detach()
        h.register_hook(lambda gradient: add(site, values[:, first:], gradient[:, first:]))
        return h

    def add(site: Site, h: Tensor, gradient: Tensor) -> None:
        scores = token_score(score, h, norms[site.key], None)
        order = scores.argsort(dim=-1)
        change = -(h.float() * gradient.float()).gather(-1, order).cumsum(dim=-1)
        for place, share in enumerate(shares):
            n_left = site.n_units - n_kept(site.n_units, share)
            if n_left:
                sums[site.key][place] += 0.5 * change[..., n_left - 1].double().square().sum()

    embeddings: nn.Module = model.get_input_embeddings()
    device = next(model.parameters()).device
    with watching(model, sites, action), torch.enable_grad():
        for row in blocks.split(2):
            ids = with_bos(row, bos).to(device)
            with embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_(True)):
                logits = model(input_ids=ids, use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
            )
            loss.backward()
    return {key: (values / blocks.numel()).tolist() for key, values in sums.items()}


def score_samples(
    model: Any,
    sites: Sequence[Site],
    blocks: Tensor,
    score: str,
    *,
    bos: int | None = None,
    most: int = 2**17,
) -> dict[str, Tensor]:
    """Scores of a site's units on calibration text, ascending, evenly thinned out to `most`.

    Thresholds are taken from them: the score at a share of the way through.

    Returns:
        Site key -> (at most `most`,) float32.
    """
    parts: dict[str, list[Tensor]] = {site.key: [] for site in sites}
    norms = {site.key: _norms(site, score) for site in sites}

    def action(site: Site, h: Tensor) -> None:
        parts[site.key].append(token_score(score, h[:, 1:], norms[site.key], None).flatten())

    device = next(model.parameters()).device
    with watching(model, sites, action), torch.inference_mode():
        for row in blocks.split(4):
            model(input_ids=with_bos(row, bos).to(device), use_cache=False)
    sorted_scores = {}
    for key, values in parts.items():
        scores = torch.cat(values).cpu()
        step = -(-len(scores) // most)
        sorted_scores[key] = scores[::step].sort().values
    return sorted_scores


def threshold(scores: Tensor, share: float) -> float:
    """The score that `share` of some ascending scores lie below."""
    place = min(int(share * len(scores)), len(scores) - 1)
    return float(scores[place]) if share > 0 else 0.0


def shares_left_out(
    model: Any,
    sites: Sequence[Site],
    recipe: Recipe,
    blocks: Tensor,
    *,
    bos: int | None = None,
) -> dict[str, float]:
    """The shares that a recipe's thresholds leave out of a text, site by site, as it runs."""
    by_key = {site.key: site for site in sites}
    held = [by_key[key] for key in recipe.thresholds]
    left = dict.fromkeys(recipe.thresholds, 0.0)
    norms = {site.key: _norms(site, recipe.rules[site.key].score) for site in held}

    def count(site: Site, h: Tensor) -> None:
        offsets = h[:, 1:] - recipe.centres.get(site.key, 0.0)
        scores = token_score(recipe.rules[site.key].score, offsets, norms[site.key], None)
        left[site.key] += float((scores < recipe.thresholds[site.key]).double().mean(dim=-1).sum())

    device = next(model.parameters()).device
    # Hooks see what those before them leave: what counts is put first.
    with ExitStack() as stack:
        stack.enter_context(watching(model, held, count))
        stack.enter_context(hold_recipe(model, sites, recipe, bos=bos is not None))
        stack.enter_context(torch.inference_mode())
        for row in blocks.split(4):
            model(input_ids=with_bos(row, bos).to(device), use_cache=False)
    tokens = blocks.numel() - (len(blocks) if bos is None else 0)
    return {key: share / tokens for key, share in left.items()}


def layer_greedy(
    model: Any,
    sites: Sequence[Site],
    blocks: Tensor,
    score: str,
    sizes: Mapping[str, int],
    wanted: float,
    *,
    bos: int | None = None,
) -> dict[str, float]:
    """TEAL's block-wise greedy allotment (arXiv:2408.14690, algorithm 1), of all layers at once.

    Within each layer the site whose next step changes the layer's output least takes it, until the
    layer leaves out a level of its bytes; all layers have the same level. Steps of different sites
    save as many bytes. Each layer reads what it reads in the dense model, whatever the layers
    before it leave out, so that one pass measures a step in all of them.

    Args:
        model, sites, blocks, score, bos: As in `loss_curves`.
        sizes: Site key -> bytes that a share of 1 saves.
        wanted: The level: a share of a layer's bytes.

    Returns:
        Site key -> share.
    """
    by_layer: dict[int, list[Site]] = {}
    for site in sites:
        by_layer.setdefault(site.layer, []).append(site)
    totals = {layer: sum(sizes[s.key] for s in group) for layer, group in by_layer.items()}
    shares = {site.key: 0.0 for site in sites}
    level = 0.0
    errors = _LayerErrors(model, blocks, bos)
    while level < wanted - 1e-9:
        amount = min(_STEP, wanted - level)
        best: dict[int, tuple[float, str, float]] = {}
        for place in range(max(map(len, by_layer.values()))):
            trial, moved = dict(shares), {}
            for layer, group in by_layer.items():
                if place < len(group):
                    key = group[place].key
                    trial[key] = min(MOST, shares[key] + amount * totals[layer] / sizes[key])
                    if trial[key] > shares[key]:
                        moved[layer] = key
            rules = {s.key: Rule(score, trial[s.key], 1, site=s.kind) for s in sites}
            measured = errors.of(sites, Recipe(rules))
            for layer, key in moved.items():
                candidate = (measured[layer], key, trial[key])
                best[layer] = min(best.get(layer, candidate), candidate)
        for _, key, share in best.values():
            shares[key] = share
        level += amount
    return shares


class _LayerErrors:
    """The change of each layer's output, where every layer reads what the dense model gives it."""

    def __init__(self, model: Any, blocks: Tensor, bos: int | None) -> None:
        self._model, self._bos = model, bos
        self._layers = decoder_layers(model)[1]
        self._rows = blocks.split(4)
        self._inputs: list[list[Tensor]] = []
        self._outputs: list[list[Tensor]] = []
        for row in self._rows:
            inputs: list[Tensor] = []
            outputs: list[Tensor] = []

            def enter(_: Any, args: Any, kwargs: Any, inputs: list[Tensor] = inputs) -> None:
                inputs.append(args[0] if args else kwargs["hidden_states"])

            def leave(_: Any, __: Any, out: Any, outputs: list[Tensor] = outputs) -> None:
                outputs.append(out[0] if isinstance(out, tuple) else out)

            with self._hooked(enter, leave):
                self._run(row)
            self._inputs.append(inputs)
            self._outputs.append(outputs)

    def of(self, sites: Sequence[Site], recipe: Recipe) -> list[float]:
        """Layer by layer, the mean squared change of the output under a recipe."""
        sums = [0.0] * len(self._layers)
        for row, inputs, outputs in zip(self._rows, self._inputs, self._outputs, strict=True):
            entered = left = 0

            def enter(
                _: Any, args: Any, kwargs: Any, inputs: list[Tensor] = inputs
            ) -> tuple[Any, Any]:
                nonlocal entered
                entered += 1
                if args:
                    return (inputs[entered - 1], *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": inputs[entered - 1]}

            def leave(_: Any, __: Any, out: Any, outputs: list[Tensor] = outputs) -> None:
                nonlocal left
                changed = out[0] if isinstance(out, tuple) else out
                sums[left] += float((changed - outputs[left]).double().square().sum())
                left += 1

            has_bos = self._bos is not None
            with self._hooked(enter, leave), hold_recipe(self._model, sites, recipe, bos=has_bos):
                self._run(row)
        return sums

    @contextmanager
    def _hooked(self, enter: Any, leave: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
                stack.enter_context(layer.register_forward_hook(leave))
            yield

    def _run(self, row: Tensor) -> None:
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            self._model(input_ids=with_bos(row, self._bos).to(device), use_cache=False)
