"""Hold a keep rule on routed experts. Everything is put back on exit.

A token is routed by the router's own function, among the experts that are kept alone; where these
are fewer than the router would choose, to all of them. A set that is held for good gives what a
router gives that has the rows of these experts alone: the logits of others are minus infinity.
Under windowed and dynamic rules the others are only not chosen, and the weights of the chosen are
as they were. So keeping at every token as many as it is routed to, or more, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import pass_shape, whole_passages
from keepset.hold.slices import standing_forward
from keepset.hold.windows import Windowed
from keepset.kernels.selection import Selection
from keepset.rules.masks import Masks, spread_windows, window_means
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import EXPERT_SCORES, token_names
from keepset.sites.experts import ExpertSite

Action = Callable[[ExpertSite, Callable[[], Tensor]], Tensor | None]
"""Sees a site, and what gives its router weights (batch, tokens, n_experts); returns which experts
are kept: (n_experts,) bool for good, or of the weights' shape; None leaves the routing alone."""
_TOPK = (torch.topk, Tensor.topk)


class _Routing(TorchFunctionMode):
    """Sees a router's logits and its choice; among the `kept` experts alone, where given."""

    def __init__(
        self, site: ExpertSite, kept: Tensor | None = None, *, for_good: bool = False
    ) -> None:
        """Prepare.

        Args:
            site: The site whose router will run.
            kept: (1 or tokens, n_experts) bool.
            for_good: Whether the others are as if they were not there.
        """
        super().__init__()
        self._n, self._kept, self._for_good = site.n_units, kept, for_good
        # Rows that keep everything are routed apart (`_merged`).
        self._fewest = None if kept is None else int(kept.sum(dim=-1).min())
        self.logits: Tensor | None = None
        self.choice: Tensor | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if function in _TOPK and args[0].shape[-1] == self._n:
            return self._choose(function, args, kwargs)
        result = function(*args, **kwargs)
        if function is nn.functional.linear and self._is_first(result):
            result = self.logits = self._masked(result) if self._for_good else result
        return result

    def _is_first(self, result: Tensor) -> bool:
        return result.shape[-1] == self._n and self.logits is None

    def _choose(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scores, *rest = args
        self.choice = scores
        k = kwargs.pop("k") if "k" in kwargs else rest.pop(0)
        if self._fewest is not None:
            k = min(int(k), self._fewest)
        return function(self._masked(scores), k, *rest, **kwargs)

    def _masked(self, scores: Tensor) -> Tensor:
        if self._kept is None:
            return scores
        # A router may see (batch, tokens, n_experts), or (batch * tokens, n_experts).
        kept = self._kept if len(self._kept) == 1 else self._kept.view(scores.shape)
        return scores.masked_fill(~kept, -torch.inf)


def _weights(site: ExpertSite, forward: Any, args: Any, kwargs: Any) -> Tensor:
    """What a router weighs each expert by when it chooses, float32: (tokens, n_experts).

    That is the score that its top-k is taken of: a probability, or a sigmoid with the correction
    that balances experts. Where it is the logits themselves, their softmax.
    """
    with _Routing(site) as seen:
        forward(*args, **kwargs)
    if seen.logits is None or seen.choice is None:
        raise _unseen(site)
    scores, logits = seen.choice.detach().float(), seen.logits.detach().float()
    by_logits = scores.shape == logits.shape and torch.equal(scores, logits)
    return scores.softmax(dim=-1) if by_logits else scores


def _merged(dense: Tensor, whole: Any, held: Any, n_experts: int) -> Any:
    """A router's outputs: of `whole` for the tokens `dense` (tokens,) bool, of `held` for others.

    Where fewer experts were chosen under the rule, others stand in their places, with weight 0.
    """
    parts = []
    missing = torch.empty(0, dtype=torch.int64)
    index = next((part for part in held if _is_index(part)), None)
    if index is not None:
        n_missing = max(part.shape[-1] for part in whole if _is_index(part)) - index.shape[-1]
        free = torch.ones(len(dense), n_experts, device=index.device)
        free.scatter_(1, index.reshape(len(dense), -1), 0.0)
        missing = free.topk(n_missing, dim=1).indices
    for one, other in zip(whole, held, strict=True):
        if one.shape != other.shape:
            gap = missing if _is_index(other) else torch.zeros_like(missing, dtype=other.dtype)
            other = torch.cat([other, gap.view(*other.shape[:-1], -1).to(other.dtype)], dim=-1)
        rows = dense.view(*one.shape[:-1], 1)
        parts.append(torch.where(rows, one, other))
    return type(held)(parts)


def _is_index(part: Tensor) -> bool:
    return not part.is_floating_point()


def _unseen(site: ExpertSite) -> ModelError:
    return ModelError(
        f"{site.name}: {type(site.router).__name__} was not seen to choose experts by the largest"
        " of its scores; its experts cannot be held"
    )


@contextmanager
def routing(model: nn.Module, sites: Sequence[ExpertSite], action: Action) -> Iterator[None]:
    """Let `action` say which experts each site keeps, at every forward pass.

    Raises:
        ModelError: a router's experts cannot be held.
    """
    for site in sites:
        if site.refusal is not None:
            raise ModelError(
                f"{site.name}: {site.refusal}, so that no set of its experts can be held; hold"
                " their neurons instead"
            )
    shape: list[tuple[int, ...]] = [()]

    def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[0] = pass_shape(args, kwargs)

    def routed(site: ExpertSite, forward: Any, *args: Any, **kwargs: Any) -> Any:
        def weights() -> Tensor:
            return _weights(site, forward, args, kwargs).view(*shape[0], site.n_units)

        kept = action(site, weights)
        if kept is None or bool(kept.all()):
            return forward(*args, **kwargs)
        for_good, rows = kept.ndim == 1, kept.view(-1, site.n_units)
        dense = rows.all(dim=1)
        with _Routing(site, rows, for_good=for_good) as held:
            outputs = forward(*args, **kwargs)
        if held.logits is None or held.choice is None:
            raise _unseen(site)
        if for_good or not bool(dense.any()):
            return outputs
        return _merged(dense, forward(*args, **kwargs), outputs, site.n_units)

    with ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(on_forward, with_kwargs=True))
        for site in sites:
            forward = partial(routed, site, site.router.forward)
            stack.enter_context(standing_forward(site.router, forward))
        yield


@contextmanager
def routing_without(site: ExpertSite, expert: int) -> Iterator[None]:
    """Leave one expert out of the choice of every token; the weights of others stay."""
    kept = torch.ones(1, site.n_units, dtype=torch.bool)
    kept[0, expert] = False
    forward = site.router.forward

    def routed(*args: Any, **kwargs: Any) -> Any:
        with _Routing(site, kept.to(args[0].device)):
            return forward(*args, **kwargs)

    with standing_forward(site.router, routed):
        yield


class ExpertWindows(Windowed):
    """The action of a windowed or dynamic rule: the experts that a window's tokens weigh most.

    The first token of a row, or its BOS token, is routed among all experts.
    """

    def __init__(self, rule: Rule, **options: Any) -> None:
        """See `Windowed`.

        Raises:
            ConfigError: the rule is static, or its score cannot be taken per token.
        """
        super().__init__(rule, **options)
        score = EXPERT_SCORES.get(rule.score)
        if score is None or score.token is None:
            raise ConfigError(
                f"score {rule.score!r} of experts cannot be taken per token; use one of"
                f" {', '.join(token_names(EXPERT_SCORES))}"
            )
        self._token_score, self._seeded = score.token, score.seeded
        self._by_router = rule.method == "dynamic" and rule.score == "magnitude"

    def score(self, site: ExpertSite, weights: Tensor) -> Tensor:
        """Score every expert at every token: (batch, tokens, n_experts) float32."""
        generator = self._generator(site, weights.device) if self._seeded else None
        return self._token_score(weights, generator)

    def __call__(self, site: ExpertSite, weights: Callable[[], Tensor]) -> Tensor | None:
        """Which experts are kept: (batch, tokens, n_experts) bool."""
        kept = n_kept(site.n_units, self.rule.sparsity)
        # Of equal weights, common in bfloat16, a router need not choose the lowest index first.
        if kept == site.n_units or (self._by_router and kept >= site.top_k):
            return None
        every = weights()
        scores = self.score(site, every[:, self._n_bos :])
        if not scores.shape[1]:
            return None
        means = window_means(scores, self.valid, self.rule.window)
        if self.rule.choice == "causal":
            opening = self._opening(site, scores[:, 0])
            means = torch.cat([opening[:, None], means[:, :-1]], dim=1)
        mask = spread_windows(self._best(site, means, kept), scores.shape[1], self.rule.window)
        held = torch.ones_like(every, dtype=torch.bool)
        dense = self._n_bos + int(not self._n_bos or self._opens_unchosen)
        held[:, dense:] = mask[:, dense - self._n_bos :]
        return held


@contextmanager
def hold_static(
    model: nn.Module,
    sites: Sequence[ExpertSite],
    masks: Masks,
    selection: Selection | None = None,
) -> Iterator[None]:
    """Hold one keep set for every token, from the first: what is cut for good is gone."""
    del selection  # there is one way
    device = next(model.parameters()).device
    kept = {site.key: masks[site.key].to(device) for site in sites}
    with routing(model, sites, lambda site, _: kept[site.key]):
        yield


@contextmanager
def hold_windows(
    model: nn.Module, sites: Sequence[ExpertSite], rule: Rule, **options: Any
) -> Iterator[ExpertWindows]:
    """Hold a windowed or dynamic rule; `options` are those of `Windowed`."""
    action = ExpertWindows(rule, **options)
    with whole_passages(model), routing(model, sites, action):
        yield action


def lead_in_scores(
    model: nn.Module,
    sites: Sequence[ExpertSite],
    rules: Sequence[Rule],
    widths: Sequence[int],
    lead_in: Tensor,
    **_: Any,
) -> list[dict[str, Tensor]]:
    """See `keepset.kinds.SiteKind`."""
    windows = [ExpertWindows(rule) for rule in rules]
    scores: list[dict[str, Tensor]] = [{} for _ in rules]

    def action(site: ExpertSite, weights: Callable[[], Tensor]) -> None:
        every = weights()
        for window, width, means in zip(windows, widths, scores, strict=True):
            means[site.key] = window.score(site, every[:, -width:]).mean(dim=1)

    with routing(model, sites, action), torch.inference_mode():
        model(input_ids=lead_in, use_cache=False)
    return scores
