"""Hold a keep rule on the inputs of linear maps. Hooks and swapped weights are always removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.windows import Windowed
from keepset.rules.masks import Masks, spread_windows, window_means
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import NEURON_SCORES, site_seed, token_score
from keepset.sites.ffn import Projection, Site

Action = Callable[[Site, Tensor], Tensor | None]
"""Sees h (batch, tokens, n_units) at a site; returns a replacement, or None to leave it alone."""


@contextmanager
def watching(model: nn.Module, sites: Sequence[Site], action: Action) -> Iterator[None]:
    """Call `action` with the activations of every site, at every forward pass.

    A module that is shared over depths is one site per call; calls are counted within a forward
    pass of `model`. All hooks are removed on exit, also after an exception.
    """
    shape: list[int] = []
    calls: Counter[nn.Module] = Counter()
    by_call = {(site.down, site.call): site for site in sites}

    def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.clear()
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape[:] = list((kwargs["inputs_embeds"] if ids is None else ids).shape[:2])

    def on_site(down: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        site = by_call.get((down, calls[down]))
        calls[down] += 1
        if site is None:
            return None
        h = args[0]
        # Some families flatten (batch, tokens) before the FFN.
        changed = action(site, h.view(*shape, h.shape[-1]))
        return None if changed is None else (changed.view(h.shape), *args[1:])

    with ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(on_forward, with_kwargs=True))
        for down in dict.fromkeys(site.down for site in sites):
            stack.enter_context(down.register_forward_pre_hook(on_site))
        yield


def output_norms(site: Site) -> Tensor:
    """||w_j||_2 of every unit's output column: (n_units,) float32."""
    return site.down_weight().float().norm(dim=1)


class Windows(Windowed):
    """The action of a windowed or dynamic rule on the inputs of linear maps.

    The first token of a row, the BOS token where there is one, is run dense under every rule: it
    is the attention sink, and no set chosen on later tokens keeps its large units.
    """

    def __init__(self, rule: Rule, *, noise: int | None = None, **options: Any) -> None:
        """See `Windowed`.

        Args:
            rule: The rule.
            noise: Seed of noise in the last bit of every h, as another machine's kernels would
                make; none where left out.
            options: Those of `Windowed`.
        """
        super().__init__(rule, **options)
        score = NEURON_SCORES.get(rule.score)
        self._seeded = score is not None and score.seeded
        self._needs_norms = score is not None and score.needs_norms
        self._norms: dict[str, Tensor] = {}
        self._noise = noise
        self._noises: dict[str, torch.Generator] = {}

    def score(self, site: Site, h: Tensor) -> Tensor:
        """Score every unit at every token: (batch, tokens, n_units) float32."""
        generator = self._generator(site, h.device) if self._seeded else None
        return token_score(self.rule.score, h, self._output_norms(site), generator)

    def _output_norms(self, site: Site) -> Tensor | None:
        if not self._needs_norms:
            return None
        if site.key not in self._norms:
            self._norms[site.key] = output_norms(site)
        return self._norms[site.key]

    def __call__(self, site: Site, h: Tensor) -> Tensor | None:
        """Mask h (batch, tokens, n_units)."""
        kept = n_kept(site.n_units, self.rule.sparsity)
        if kept == site.n_units or h.shape[1] == self._n_bos:
            return None
        if self._noise is not None:
            h = self._rounded_elsewhere(site, h, self._noise)
        text = h[:, self._n_bos :]
        scores = self.score(site, text)
        means = window_means(scores, self.valid, self.rule.window)
        if self.rule.choice == "causal":
            opening = self._opening(site, scores[:, 0])
            before = torch.cat([opening[:, None], means[:, :-1]], dim=1)
            mask = self._best(site, before, kept)
        else:
            # A zero |h| leaves nothing to choose; a random score says nothing about h.
            mask = self._best(site, means, kept, zeros_matter=self._seeded)
        masked = text * spread_windows(mask, text.shape[1], self.rule.window)
        if not self._n_bos or self._opens_unchosen:
            masked[:, 0] = text[:, 0]
        return torch.cat([h[:, : self._n_bos], masked], dim=1) if self._n_bos else masked

    def _rounded_elsewhere(self, site: Site, h: Tensor, noise: int) -> Tensor:
        """h with the last bit of each number one up, one down, or as it was."""
        if site.key not in self._noises:
            seed = site_seed(noise, site.key)
            self._noises[site.key] = torch.Generator(h.device).manual_seed(seed)
        signs = torch.randint(-1, 2, h.shape, generator=self._noises[site.key], device=h.device)
        # Half an epsilon of h is at least half, and less than one, of its last bit.
        return h + h * (signs * (torch.finfo(h.dtype).eps / 2)).to(h.dtype)


class Static:
    """The action of a static rule: one mask per site for every token but a row's first."""

    def __init__(self, masks: Masks) -> None:
        """Keep the units that `masks` marks."""
        self._masks = masks

    def __call__(self, site: Site, h: Tensor) -> Tensor:
        """Mask h (batch, tokens, n_units)."""
        masked = h * self._masks[site.key].to(h.device)
        masked[:, 0] = h[:, 0]
        return masked


@contextmanager
def hold_static(model: nn.Module, sites: Sequence[Site], masks: Masks) -> Iterator[None]:
    """Hold one keep set for every token but the first of each row, which is run dense."""
    with watching(model, sites, Static(masks)):
        yield


@contextmanager
def hold_windows(
    model: nn.Module, sites: Sequence[Site], rule: Rule, **options: Any
) -> Iterator[Windows]:
    """Hold a windowed or dynamic rule; `options` are those of `Windows`."""
    action = Windows(rule, **options)
    with watching(model, sites, action):
        yield action


def lead_in_scores(
    model: nn.Module,
    sites: Sequence[Site],
    rules: Sequence[Rule],
    widths: Sequence[int],
    lead_in: Tensor,
) -> list[dict[str, Tensor]]:
    """See `keepset.kinds.SiteKind`."""
    windows = [Windows(rule) for rule in rules]
    scores: list[dict[str, Tensor]] = [{} for _ in rules]

    def action(site: Site, h: Tensor) -> None:
        for window, width, means in zip(windows, widths, scores, strict=True):
            means[site.key] = window.score(site, h[:, -width:]).mean(dim=1)

    with watching(model, sites, action), torch.inference_mode():
        model(input_ids=lead_in, use_cache=False)
    return scores


Slices = Sequence[tuple[Any, Mapping[str, Tensor]]]
"""Modules, each with the parameters of kept units alone."""


def cut_weights(sites: Sequence[Site], masks: Masks) -> Slices:
    """The weights of the kept units of every site, copied together.

    Raises:
        ModelError: a site's projections cannot be sliced (see `sliceable`).
    """
    slices: list[tuple[Any, Mapping[str, Tensor]]] = []
    for site in sites:
        if not sliceable(site):
            raise ModelError(f"{site.name}: the units of this site cannot be sliced")
        units = masks[site.key].nonzero()[:, 0].to(site.down_weight().device)
        if len(units) == site.n_units:
            continue
        slices += [(part.module, slice_up(part, units)) for part in site.up]
        slices.append((site.down, {"weight": _slice_down(site, units)}))
    return slices


@contextmanager
def in_place(slices: Slices) -> Iterator[None]:
    """Let the model run with parts of its weights; the dense ones are put back on exit."""
    with ExitStack() as stack:
        for module, tensors in slices:
            stack.enter_context(swapped(module, tensors))
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
    """Replace parameters of `module` by `tensors`; sizes that forward reads follow."""
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
