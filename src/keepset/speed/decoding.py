"""A whole model that decodes: dense against rules that can be deployed, and the oracle's limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keepset.decode.generate import Generation, Replay, compare, generate
from keepset.decode.reference import disagreement, moved_by_rounding
from keepset.errors import KeepsetError
from keepset.hold.contexts import with_bos
from keepset.hold.inputs import output_norms, watching
from keepset.kernels.selection import Selection
from keepset.rules.masks import spread_windows, top_mask, window_means
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, describe, n_kept
from keepset.rules.scores import Moments, token_score
from keepset.sites.ffn import Site, find_ffn_sites
from keepset.speed.timing import Machine, summary

Row = dict[str, Any]
# A token that is not the reference's choice may be due to rounding if the two are this near.
NEAR = {torch.float64: 1e-6, torch.float32: 5e-2}
NEAR_LOW_PRECISION = 0.5


def time_decoding(
    model: Any,
    ids: Tensor,
    rules: Sequence[Rule],
    tokens: int,
    machine: Machine,
    moments: Mapping[str, Moments] | None,
    selection: Selection,
    bos: int | None = None,
) -> Iterator[Row]:
    """Rows of the `kernels` table, level `model`, one per rule; none for a model without an FFN.

    Dense and sparse take turns, token by token. Times are per token, averaged within windows, so
    that the change of sets counts. An oracle window is chosen on tokens that come later: it is
    timed on a given text, with sets from an earlier pass, and shows what a perfect prediction of
    the sets would save.

    Args:
        model: A causal language model in eval mode.
        ids: The prompt (1, n); n a multiple of every window.
        rules: What to time.
        tokens: Decoded tokens per rule, at least; whole windows are decoded.
        machine: What it runs on.
        moments: For static rules.
        selection: Which kernels may run; a path is timed once for all rules.
        bos: The token that is put before the prompt.

    Raises:
        KeepsetError: a token is not the masked reference's, beyond rounding.
    """
    sites = find_ffn_sites(model)
    for rule in rules if sites else ():
        width = rule.window if isinstance(rule.window, int) else 1
        steps = -(-tokens // width) * width
        dense, sparse = _decode(model, ids, rule, steps + 1, moments, selection, sites, bos)
        chunks = [run.steps_s.view(-1, width).mean(dim=1).numpy() for run in (dense, sparse)]
        bytes_ = _bytes(model, sites, rule)
        yield {
            "level": "model",
            "kernel": "decode",
            "path": max(sparse.paths, key=sparse.paths.__getitem__, default="sliced"),
            "shape": f"{sites[0].down_weight().shape[1]}x{sites[0].n_units}x{len(sites)}",
            **{key: value for key, value in rule.columns.items() if key != "seed"},
            "batch": 1,
            **summary(chunks[1], chunks[0]),
            "bytes": bytes_,
            "roofline_ms": 1e3 * bytes_ / machine.bandwidth,
        }


def _decode(
    model: Any,
    ids: Tensor,
    rule: Rule,
    tokens: int,
    moments: Mapping[str, Moments] | None,
    selection: Selection,
    sites: Sequence[Site],
    bos: int | None,
) -> tuple[Generation, Generation]:
    shared: Any = {"kernels": selection, "bos": bos}
    if rule.method == "windowed" and rule.choice == "oracle":
        text = generate(model, ids, tokens, **shared).tokens
        sets, logits = oracle_sets(model, ids, text, rule, sites, bos)
        replay = Replay(text, sets)
        dense, sparse = compare(model, ids, tokens, rule, replay=replay, **shared)
        picked = logits.gather(1, sparse.tokens[:, None])[:, 0]
        _need_equal(model, rule, float((logits.max(dim=1).values - picked).max()))
        return dense, sparse
    return decode_both(model, ids, rule, tokens, moments=moments, **shared)


class WrongTokensError(KeepsetError):
    """Decoded tokens are not the masked reference's, by more than rounding."""


def decode_both(
    model: Any,
    ids: Tensor,
    rule: Rule | Recipe,
    tokens: int,
    *,
    moments: Mapping[str, Moments] | None = None,
    kernels: Selection | None = None,
    bos: int | None = None,
) -> tuple[Generation, Generation]:
    """Decode dense and under a rule or recipe, token by token in turn.

    Args:
        model, ids, rule, tokens, moments, kernels, bos: As in `keepset.decode.compare`.

    Returns:
        Dense, sparse.

    Raises:
        WrongTokensError: a token is not the masked reference's, beyond rounding.
    """
    shared: Any = {"moments": moments, "kernels": kernels, "bos": bos}
    dense, sparse = compare(model, ids, tokens, rule, **shared)
    wrong = disagreement(model, ids, sparse.tokens, rule, **shared)
    if wrong is not None:
        near = NEAR.get(model.dtype, NEAR_LOW_PRECISION)
        if wrong.gap > near:
            new = sparse.tokens[: wrong.index + 1]
            near = max(near, moved_by_rounding(model, ids, new, rule, **shared))
        _need_equal(model, rule, wrong.gap, near)
    return dense, sparse


def _need_equal(model: Any, rule: Rule | Recipe, gap: float, near: float | None = None) -> None:
    """Refuse tokens that are not the reference's, by `gap` of logit."""
    near = NEAR.get(model.dtype, NEAR_LOW_PRECISION) if near is None else near
    if not gap <= near:
        raise WrongTokensError(
            f"{describe(rule)}: the decoded tokens are not the masked reference's, by {gap:.3g} of"
            f" logit (more than {near:g}); no time is reported for a wrong result"
        )


def oracle_sets(
    model: Any,
    ids: Tensor,
    new: Tensor,
    rule: Rule,
    sites: Sequence[Site],
    bos: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The sets that an oracle chooses on prompt and new tokens, and its logits.

    The BOS token, where there is one, is put before the prompt and stands outside of windows.

    Returns:
        Site key -> (n_windows, n_units) bool; logits before each of the new tokens, (m, words).
    """
    norms = {site.key: output_norms(site) for site in sites}
    sets: dict[str, Tensor] = {}

    def action(site: Site, h: Tensor) -> Tensor:
        text = h[:, int(bos is not None) :]
        scores = token_score(rule.score, text, norms[site.key], None)
        mask = top_mask(
            window_means(scores, None, rule.window), n_kept(site.n_units, rule.sparsity)
        )
        sets[site.key] = mask[0]
        held = h.clone()
        held[:, -text.shape[1] :] *= spread_windows(mask, text.shape[1], rule.window)
        held[:, 0] = h[:, 0]
        return held

    context = with_bos(torch.cat([ids, new[None, :-1].to(ids.device)], dim=1), bos)
    with watching(model, sites, action), torch.inference_mode():
        logits = model(input_ids=context, use_cache=False).logits[0, -len(new) :]
    return sets, logits.cpu()


def _bytes(model: Any, sites: Sequence[Site], rule: Rule) -> int:
    """Bytes of weights that a token must read, by the rule."""
    head = model.get_output_embeddings().weight
    tables = {id(model.get_input_embeddings().weight)} - {id(head)}
    total = sum(p.nbytes for p in model.parameters() if id(p) not in tables)
    for site in sites:
        down = site.down_weight().nbytes
        up = down * (2 if site.gated else 1)
        kept = n_kept(site.n_units, rule.sparsity) / site.n_units
        if rule.method == "dynamic":
            total -= int(down * (1 - kept))
            continue
        total -= int((up + down) * (1 - kept))
        if rule.method == "windowed":
            # Once in a window the kept rows are copied (read, written), and a causal rule reads
            # gate and up of every unit.
            turn = 2 * kept * (up + down) + (up if rule.choice == "causal" else 0)
            total += int(turn / int(rule.window))
    return total
