"""Hold a keep rule on a running model. Hooks and swapped weights are always taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.rules.masks import spread_windows, top_mask, window_means
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import site_seed, token_score
from keepset.sites import Projection, Site

Action = Callable[[Site, Tensor], Tensor | None]
"""Sees h (batch, tokens, n_units) at a site; returns a replacement, or None to leave it alone."""


@contextmanager
def watching(model: nn.Module, sites: Sequence[Site], action: Action) -> Iterator[None]:
    """Call `action` with the activations of every site, at every forward pass.

    A module that is shared over depths is one site per call; calls are counted within a forward
    pass of `model`. All hooks are removed on exit, also after an exception.
    """
    shape: list[int] = []
    calls: dict[nn.Module, int] = {}

    def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.clear()
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape[:] = list((kwargs["inputs_embeds"] if ids is None else ids).shape[:2])

    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(on_forward, with_kwargs=True)
        stack.callback(handle.remove)
        for down, shared in _by_module(sites).items():
            hook = _site_hook(down, shared, action, shape, calls)
            stack.callback(down.register_forward_pre_hook(hook).remove)
        yield


def _by_module(sites: Sequence[Site]) -> dict[nn.Module, dict[int, Site]]:
    modules: dict[nn.Module, dict[int, Site]] = {}
    for site in sites:
        modules.setdefault(site.down, {})[site.call] = site
    return modules


def _site_hook(
    down: nn.Module,
    shared: Mapping[int, Site],
    action: Action,
    shape: Sequence[int],
    calls: dict[nn.Module, int],
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = calls.get(down, 0)
        calls[down] = call + 1
        site = shared.get(call)
        if site is None:
            return None
        h = args[0]
        # Some families flatten (batch, tokens) before the FFN.
        changed = action(site, h.view(*shape, h.shape[-1]))
        return None if changed is None else (changed.view(h.shape), *args[1:])

    return hook


def output_norms(site: Site) -> Tensor:
    """||w_j||_2 of every unit's output column: (n_units,) float32."""
    return site.down_weight().float().norm(dim=1)


class Windows:
    """The action of a windowed or dynamic rule.

    `causal` holds, in each window, the set chosen on the window before. In a stream (rows of
    consecutive text) the window before a row's first is the last of the row above, across batches
    too, and at the very start the end of the lead-in. In separate passages the first window has
    nothing to choose from and is run dense. The first token of a row opens its context and is
    always run dense: it is the attention sink, and no set chosen on later tokens carries it.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        norms: Mapping[str, Tensor] | None = None,
        lead_in: Mapping[str, Tensor] | None = None,
        stream: bool = True,
    ) -> None:
        """Prepare the rule.

        Args:
            rule: A rule whose window is not "corpus".
            norms: Site key -> output norms, for the score `impact`.
            lead_in: Site key -> (n_units,) mean score over the last window of the text before,
                for `causal` in a stream.
            stream: Whether rows are consecutive text.
        """
        if rule.window == "corpus":
            raise ConfigError("a rule with window: corpus is static; use `sliced` or `Static`")
        self.rule = rule
        self.valid: Tensor | None = None
        self._norms = norms or {}
        self._stream = stream
        self._previous = dict(lead_in or {})
        self._generators: dict[str, torch.Generator] = {}

    def __call__(self, site: Site, h: Tensor) -> Tensor | None:
        """Mask h (batch, tokens, n_units)."""
        kept = n_kept(site.n_units, self.rule.sparsity)
        if kept == site.n_units:
            return None
        score = token_score(
            self.rule.score, h, self._norms.get(site.key), self._generator(site, h.device)
        )
        means = window_means(score, self.valid, self.rule.window)
        if self.rule.choice == "causal":
            mask = self._causal_mask(site, means, kept)
            held = h * spread_windows(mask, h.shape[1], self.rule.window)
            held[:, 0] = h[:, 0]
            return held
        # A zero |h| leaves nothing to choose; a random score says nothing about h.
        mask = top_mask(means, kept, zeros_matter=self.rule.score == "random")
        return h * spread_windows(mask, h.shape[1], self.rule.window)

    def _generator(self, site: Site, device: torch.device) -> torch.Generator | None:
        if self.rule.score != "random":
            return None
        if site.key not in self._generators:
            generator = torch.Generator(device).manual_seed(site_seed(self.rule.seed, site.key))
            self._generators[site.key] = generator
        return self._generators[site.key]

    def _causal_mask(self, site: Site, means: Tensor, kept: int) -> Tensor:
        batch, windows, n = means.shape
        if not self._stream:
            chosen = top_mask(means[:, :-1], kept)
            return torch.cat([chosen.new_ones(batch, 1, n), chosen], dim=1)
        flat = means.reshape(batch * windows, n)
        if site.key not in self._previous:
            raise ConfigError("a causal rule on a stream needs the scores of its lead-in")
        before = torch.cat([self._previous[site.key].to(flat)[None], flat[:-1]])
        self._previous[site.key] = flat[-1].clone()
        return top_mask(before, kept).view(batch, windows, n)


class Static:
    """The action of a static rule: one mask per site for every token."""

    def __init__(self, order: Mapping[str, Tensor], sparsity: float) -> None:
        """Keep the first units of each site's ranking `order` (n_units,), best first."""
        self._order = order
        self._sparsity = sparsity

    def __call__(self, site: Site, h: Tensor) -> Tensor | None:
        """Mask h (batch, tokens, n_units)."""
        kept = n_kept(site.n_units, self._sparsity)
        if kept == site.n_units:
            return None
        mask = torch.zeros(site.n_units, dtype=torch.bool, device=h.device)
        mask[self._order[site.key][:kept].to(h.device)] = True
        return h * mask


@contextmanager
def sliced(sites: Sequence[Site], order: Mapping[str, Tensor], sparsity: float) -> Iterator[None]:
    """Run the model with only the kept units' weights: a static rule that does less work.

    Equal to `Static` up to rounding. The dense weights are put back on exit, also after an
    exception.

    Raises:
        ModelError: a site's projections cannot be sliced (see `sliceable`).
    """
    with ExitStack() as stack:
        for site in sites:
            if not sliceable(site):
                raise ModelError(f"{site.name}: the units of this site cannot be sliced")
            kept = n_kept(site.n_units, sparsity)
            if kept == site.n_units:
                continue
            device = site.down_weight().device
            units = order[site.key][:kept].sort().values.to(device)
            for projection in site.up:
                stack.enter_context(swapped(projection.module, slice_up(projection, units)))
            stack.enter_context(swapped(site.down, {"weight": _slice_down(site, units)}))
        yield


def sliceable(site: Site) -> bool:
    """Whether a site's units can be cut out of the weights without touching another site."""
    return bool(site.up) and site.n_calls == 1


def slice_up(projection: Projection, units: Tensor) -> dict[str, Tensor]:
    """The weight, and the bias if any, of `units` alone, in the module's own layout."""
    module: Any = projection.module
    rows = torch.cat([units + offset for offset in projection.offsets])
    out_dim = 0 if isinstance(module, nn.Linear) else 1
    parts = {"weight": module.weight.index_select(out_dim, rows)}
    if getattr(module, "bias", None) is not None:
        parts["bias"] = module.bias.index_select(0, rows)
    return parts


def _slice_down(site: Site, units: Tensor) -> Tensor:
    module: Any = site.down
    return module.weight.index_select(1 if isinstance(module, nn.Linear) else 0, units)


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Stand `tensors` in for parameters of `module`; sizes that forward reads follow."""
    dense = {name: getattr(module, name) for name in tensors}
    width = getattr(module, "nf", None)
    try:
        for name, tensor in tensors.items():
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        if width is not None and "bias" in tensors:
            # Conv1D shapes its output by `nf`, not by its weight.
            module.nf = tensors["bias"].shape[0]  # type: ignore[assignment]
        yield
    finally:
        for name, parameter in dense.items():
            setattr(module, name, parameter)
        if width is not None:
            module.nf = width
