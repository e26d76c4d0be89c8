"""The memory of lightning attention (Qin et al. 2024, arXiv:2405.17381): minimax.

H(t) = exp(-s) H(t-1) + v(t) k(t)^T and y(t) = H(t) q(t), per head, with a fixed slope s. A channel
is an entry of the key: k is what is written, q what is read, and channels do not influence one
another.

transformers computes it within the layer. A function that the layer looks up right before is given
q, k and v, and gives them back with zeros for what is left out. Where a rule runs the recurrence
itself, its y takes the place of the layer's at the norm behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.memories import Action, refuse_carried
from keepset.hold.recurrence import AdditiveRecurrence, AdditiveScan, Recurrence, Scan
from keepset.kernels.dispatch import standing_in
from keepset.sites.memories import code_of
from keepset.sites.memories.lightning import PADDING
from keepset.sites.state import StateSite


@dataclass(frozen=True)
class LightningScan(AdditiveScan):
    """What a layer hands to its recurrence: B is k, and C is q.

    Attributes:
        v: (batch, tokens, heads, head_dim).
        slope: s, (heads,).
        cached: Whether the last state is wanted.
    """

    v: Tensor
    slope: Tensor
    cached: bool

    @property
    def carries(self) -> bool:
        """See `Scan`."""
        return self.cached

    def run(self) -> Tensor:
        """q, k and v of every head in turn, as the layer goes on with them."""
        return torch.stack([self.C, self.B, self.v], dim=3).flatten(2)

    def output(self) -> Tensor:
        """See `Scan`."""
        recurrence = self.recurrence()
        every = torch.ones_like(recurrence.C[:, 0], dtype=torch.bool)
        return recurrence.read(recurrence.empty(), 0, self.tokens, every)

    def recurrence(self) -> Recurrence:
        """See `Scan`."""
        decay = (-self.slope.float()).exp().view(-1, 1, 1, 1)
        decay = decay.expand(*self.v.shape[:2], -1, -1, -1, -1)
        gain = self.v.float()[:, :, :, None, :, None]
        return AdditiveRecurrence(decay, gain, self)


class _Pass:
    """One forward pass of a layer; `cache` is what it was given."""

    def __init__(self, site: StateSite, cache: Any) -> None:
        self._site, self._cache = site, cache
        self.y: Tensor | None = None
        """(batch, tokens, heads * head_dim), where it takes the place of the layer's."""

    def held(self, qkv: Tensor, action: Action) -> Tensor:
        """q, k and v (batch, tokens, heads * 3 * head_dim) under a rule."""
        site = self._site
        mixer: Any = site.mixer
        q, k, v = qkv.unflatten(2, (site.n_heads, 3, site.head_dim)).unbind(3)
        cached = self._cache is not None
        scan = LightningScan(k, q, v, mixer.slope_rate.flatten(), cached)
        if cached and self._cache.get_linear_cache(site.layer) is not None:
            kept = action.step(site).to(q.device)
            return scan.masked(kept, kept).run()
        held = action.scan(site, scan)
        if held is scan:
            return qkv
        if isinstance(held, Scan):
            held_qkv: Tensor = held.run()
            return held_qkv
        if cached:
            refuse_carried(site)
        self.y = held.flatten(2).to(qkv.dtype)
        return qkv


@contextmanager
def seeing(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """See `Memory`. A function of transformers is replaced, and what the norm is given."""
    del model
    running: list[_Pass | None] = [None]
    by_mixer = {site.mixer: site for site in sites}

    def enter(mixer: nn.Module, _: Any, options: dict[str, Any]) -> None:
        running[0] = _Pass(by_mixer[mixer], options.get("past_key_values"))

    def leave(*_: Any) -> None:
        running[0] = None

    def replaced(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        current = running[0]
        return args if current is None or current.y is None else (current.y, *args[1:])

    def seen(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def held(*args: Any, **options: Any) -> Tensor:
            qkv = original(*args, **options)
            return qkv if running[0] is None else running[0].held(qkv, action)

        return held

    with ExitStack() as stack:
        for site in sites:
            mixer: Any = site.mixer
            stack.enter_context(mixer.register_forward_pre_hook(enter, with_kwargs=True))
            stack.enter_context(mixer.register_forward_hook(leave, always_call=True))
            stack.enter_context(mixer.norm.register_forward_pre_hook(replaced))
        for module in dict.fromkeys(code_of(site.mixer) for site in sites):
            functions = {PADDING: seen(getattr(module, PADDING))}
            stack.enter_context(standing_in([module], functions))
        yield


def cut(site: StateSite, units: Tensor, n_state: int) -> None:
    """Refuse.

    Raises:
        ModelError: always: keys, values and the heads of full attention share one size.
    """
    del units, n_state
    raise ModelError(
        f"{site.name}: its keys, its values and the heads of full attention share one head_dim, so"
        " transformers has no layer with a smaller state; hold the rule on the running model"
    )
