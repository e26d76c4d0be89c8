"""Hold one keep set on the inputs of linear maps, for whole passages.

Every token but a row's first runs with the weights of kept units alone where these can be cut out;
elsewhere, and where `masked` is forced, units that are not kept are zeroed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.hold.inputs import pass_shape, watching, whole_passages
from keepset.hold.slices import Forward, slice_down, slice_up, sliceable, standing_forward, twin
from keepset.kernels.selection import Selection
from keepset.rules.masks import Masks
from keepset.sites.ffn import Projection, Site

MASKED = "masked"
"""The path that computes every unit; forced, it is the plain reference."""


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
def hold_static(
    model: nn.Module, sites: Sequence[Site], masks: Masks, selection: Selection | None = None
) -> Iterator[None]:
    """Hold one keep set for every token but the first of each row, which is run dense.

    Outputs are those of masks up to rounding. `selection` may force `MASKED`.
    """
    forced = selection is not None and MASKED in selection.forced
    cut = [] if forced else [site for site in sites if _may_be_cut(site, masks)]
    with ExitStack() as stack:
        blocks = [_CutBlock(site, masks[site.key]) for site in cut]

        def on_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for block in blocks:
                block.batch, block.tokens = pass_shape(args, kwargs)

        stack.enter_context(whole_passages(model))
        stack.enter_context(model.register_forward_pre_hook(on_forward, with_kwargs=True))
        for block in blocks:
            stack.enter_context(block.standing_in())
        rest = [site for site in sites if site not in cut]
        stack.enter_context(watching(model, rest, Static(masks)))
        yield


def _may_be_cut(site: Site, masks: Masks) -> bool:
    return sliceable(site) and bool(masks[site.key].any()) and not bool(masks[site.key].all())


class _CutBlock:
    """A block that runs kept units for every token, and all units for each row's first.

    Its projections return k columns, one for each kept unit, for every token. The units of the
    first tokens, k at a time, are further rows below. What the model does with h goes element by
    element, so it does the same with these; and the down projection takes them apart again.

    Attributes:
        batch: Rows of the running forward pass.
        tokens: Tokens of each.
    """

    def __init__(self, site: Site, mask: Tensor) -> None:
        """`mask` (n_units,) bool keeps some units and not all."""
        self.batch = self.tokens = 0
        self._site = site
        units = mask.nonzero()[:, 0].to(site.down_weight().device)
        self._width = len(units)
        self._pieces = -(-site.n_units // self._width)
        self._shape: torch.Size = torch.Size()
        forwards = [(part.module, self._up(part, units)) for part in site.up]
        self._forwards = [*forwards, (site.down, self._down(units))]

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in for the block's projections; everything is put back on exit."""
        with ExitStack() as stack:
            for module, forward in self._forwards:
                stack.enter_context(standing_forward(module, forward))
            yield

    def _up(self, projection: Projection, units: Tensor) -> Forward:
        dense, cut = projection.module.forward, twin(projection.module, slice_up(projection, units))
        outs, n_units = len(projection.offsets), self._site.n_units
        missing = self._pieces * self._width - n_units

        def forward(x: Tensor) -> Tensor:
            self._shape = x.shape
            first = dense(x.view(self.batch, self.tokens, -1)[:, 0])
            first = nn.functional.pad(first.view(self.batch, outs, n_units), (0, missing))
            pieces = first.view(self.batch, outs, self._pieces, self._width).transpose(1, 2)
            every = cut.forward(x.reshape(self.batch * self.tokens, -1))
            return torch.cat([every, pieces.reshape(self.batch * self._pieces, -1)])

        return forward

    def _down(self, units: Tensor) -> Forward:
        site = self._site
        dense, cut = site.down.forward, twin(site.down, {"weight": slice_down(site, units)})

        def forward(h: Tensor) -> Tensor:
            rows = self.batch * self.tokens
            first = h[rows:].view(self.batch, -1)[:, : site.n_units].contiguous()
            out = cut.forward(h[:rows]).view(self.batch, self.tokens, -1)
            out[:, 0] = dense(first)
            # Masks multiply a broken unit by zero, and the result is refused: so it must be here.
            if not math.isfinite(float(first.sum())):
                out.fill_(math.nan)
            return out.view(*self._shape[:-1], -1)

        return forward
