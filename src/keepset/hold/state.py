"""Hold a keep rule on the state of a running model. Everything put in its way is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.hold.recurrence import Recurrence, Scan
from keepset.kernels.dispatch import SCAN, STEP, mixer_modules, standing_in
from keepset.rules.masks import spread_windows, top_mask, window_means
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import site_seed
from keepset.sites import StateSite


class Action(Protocol):
    """Sees every scan of a mixer, and decides what runs."""

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        """A scan to run in its place, or its result y (batch, tokens, heads, head_dim)."""
        ...

    def step(self, site: StateSite, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """B and C (batch, groups, n_state) of a single cached step, as they shall be."""
        ...


class Whole:
    """Base of actions that see whole passages, never single cached steps."""

    def step(self, site: StateSite, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{site.name}: this rule runs on whole passages: give use_cache=False")


@contextmanager
def scanning(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """Have `action` see the scans of every site; other mixers run as they are.

    Transformers' functions are stood in for, not its layers. Everything is put back on exit, also
    after an exception.
    """
    at: list[StateSite | None] = [None]
    with ExitStack() as stack:
        for site in sites:
            enter, leave = _marking(at, site)
            stack.callback(site.mixer.register_forward_pre_hook(enter).remove)
            stack.callback(site.mixer.register_forward_hook(leave, always_call=True).remove)
        for module in mixer_modules(model):
            functions = {
                SCAN: _seen_scan(getattr(module, SCAN), at, action),
                STEP: _seen_step(getattr(module, STEP), at, action),
            }
            stack.enter_context(standing_in([module], functions))
        yield


def _marking(
    at: list[StateSite | None], site: StateSite
) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(*_: Any) -> None:
        at[0] = site

    def leave(*_: Any) -> None:
        at[0] = None

    return enter, leave


def _seen_scan(
    original: Callable[..., Any], at: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    def seen(x, dt, A, B, C, chunk_size, D=None, **rest):  # type: ignore[no-untyped-def]
        scan = Scan(x, dt, A, B, C, D, {"chunk_size": chunk_size, **rest})
        site = at[0]
        found = scan if site is None else action.scan(site, scan)
        if isinstance(found, Scan):
            return found.run(original)
        if rest.get("return_final_states"):
            raise ModelError("this rule runs on whole passages: give use_cache=False")
        return found.to(x.dtype)

    return seen


def _seen_step(
    original: Callable[..., Any], at: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    def seen(state, x, dt, A, B, C, *rest, **named):  # type: ignore[no-untyped-def]
        if at[0] is not None:
            B, C = action.step(at[0], B, C)
        return original(state, x, dt, A, B, C, *rest, **named)

    return seen


class StateMask:
    """The action of a static rule: the channels left out are neither written nor read."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        """Keep the channels marked in `kept`: site key -> (n_groups, n_state) bool."""
        self._kept = kept

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        """Mask B and C of all tokens."""
        kept = self._kept[site.key].to(scan.B.device)
        return scan.masked(kept, kept)

    def step(self, site: StateSite, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """Mask B and C of one token."""
        kept = self._kept[site.key].to(B.device)
        return B * kept.to(B.dtype), C * kept.to(C.dtype)


STATE_TOKEN_SCORES = ("magnitude", "impact", "random")
"""Scores of state channels that can be taken again at every token."""


class StateWindows(Whole):
    """The action of a windowed or dynamic rule on the state.

    `access` says what a channel that is not kept loses. `read`: the state keeps everything, and C
    reads a part of it. `write`: its state is forgotten, at the start of the window, and nothing
    is written to it within. A score is a sum over the window's tokens of H^2 (`magnitude`), or of
    H^2 C^2 (`impact`, which is GHOST's on the window), within each group of heads.

    With the choice `causal` a block's first window is under the set chosen on the last window of
    the block above (for the very first block, of the `lead_in`); in separate passages it is whole.
    """

    def __init__(
        self, rule: Rule, *, lead_in: Mapping[str, Tensor] | None = None, stream: bool = True
    ) -> None:
        """Prepare the rule.

        Args:
            rule: A rule of site "state", whose window is not "corpus".
            lead_in: Site key -> (n_groups, n_state) mean score over the last window of the text
                before, for `causal` in a stream.
            stream: Whether rows are consecutive text.

        Raises:
            ConfigError: the rule is static, or its score or access is unknown.
        """
        if rule.window == "corpus":
            raise ConfigError("a rule with window: corpus is static; use `StateMask`")
        if rule.access not in ("read", "write"):
            raise ConfigError(f"access must be read or write, got {rule.access!r}")
        if rule.score not in STATE_TOKEN_SCORES:
            raise ConfigError(
                f"score {rule.score!r} of a state cannot be taken per token;"
                f" use one of {', '.join(STATE_TOKEN_SCORES)}"
            )
        self.rule = rule
        self.valid: Tensor | None = None
        self._previous = dict(lead_in or {})
        self._stream = stream
        self._generators: dict[str, torch.Generator] = {}

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        """Mask what is read, or run the recurrence with what is forgotten."""
        kept = n_kept(site.n_state, self.rule.sparsity)
        if kept == site.n_state:
            return scan
        recurrence = Recurrence(scan)
        if self.rule.access == "read":
            mask = self._reading(site, recurrence, kept)
            spread = spread_windows(mask.flatten(2), recurrence.tokens, self.rule.window)
            return scan.masked(read=spread.view_as(scan.C))
        y = self._forgetting(site, recurrence, kept)
        return y if scan.D is None else y + scan.x.float() * scan.D[:, None]

    def _reading(self, site: StateSite, recurrence: Recurrence, kept: int) -> Tensor:
        """What is read of a state that keeps everything: (batch, windows, groups, n) bool."""
        dense = self._dense(site, recurrence)
        mask = top_mask(dense, kept)
        if self.rule.choice == "oracle":
            return mask
        return torch.cat([self._first(site, dense, kept)[:, None], mask[:, :-1]], dim=1)

    def _dense(self, site: StateSite, recurrence: Recurrence) -> Tensor:
        """Scores of all windows of a state that keeps everything."""
        sizes = recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)
        return self.means(site, sizes, recurrence.C, self.valid)

    def means(self, site: StateSite, sizes: Tensor, C: Tensor, valid: Tensor | None) -> Tensor:
        """Scores of the windows of some tokens: (batch, windows, groups, n)."""
        score = sizes
        if self.rule.score == "impact":
            score = sizes * C.square()
        elif self.rule.score == "random":
            generator = self._generator(site, sizes.device)
            score = torch.rand(sizes.shape, generator=generator, device=sizes.device)
        means = window_means(score.flatten(2), valid, self.rule.window)
        return means.unflatten(2, sizes.shape[2:])

    def _generator(self, site: StateSite, device: torch.device) -> torch.Generator:
        if site.key not in self._generators:
            seed = site_seed(self.rule.seed, site.key)
            self._generators[site.key] = torch.Generator(device).manual_seed(seed)
        return self._generators[site.key]

    def _first(self, site: StateSite, dense: Tensor, kept: int) -> Tensor:
        """What a causal rule keeps in each row's first window: (batch, groups, n) bool."""
        if not self._stream:
            return torch.ones_like(dense[:, 0], dtype=torch.bool)
        if site.key not in self._previous:
            raise ConfigError("a causal rule on a stream needs the scores of its lead-in")
        before = torch.cat([self._previous[site.key].to(dense)[None], dense[:-1, -1]])
        self._previous[site.key] = dense[-1, -1].clone()
        return top_mask(before, kept)

    def _forgetting(self, site: StateSite, recurrence: Recurrence, kept: int) -> Tensor:
        """Run window after window; what is not kept is zero from its start to its end."""
        tokens, window = recurrence.tokens, self.rule.window
        width = tokens if window == "sequence" else min(int(window), tokens)
        state, parts = recurrence.empty(), []
        mask = torch.empty(0)
        if self.rule.choice == "causal":
            mask = self._first(site, self._dense(site, recurrence), kept)
        for start in range(0, tokens, width):
            stop = min(start + width, tokens)
            valid = None if self.valid is None else self.valid[:, start:stop]
            # Channels do not touch one another: what each would hold if it were kept is what
            # it is scored by.
            sizes = recurrence.sizes(state.clone(), start, stop)
            score = self.means(site, sizes, recurrence.C[:, start:stop], valid)[:, 0]
            chosen = top_mask(score, kept)
            if self.rule.choice == "oracle":
                mask = chosen
            state *= mask[:, :, None, None]
            parts.append(recurrence.read(state, start, stop, mask))
            mask = chosen
        return torch.cat(parts, dim=1)


class LastWindow(Whole):
    """Sees the text before, run dense: the scores that a causal rule's first window goes by."""

    def __init__(self, rule: Rule) -> None:
        """Prepare for a causal rule of site "state"."""
        self._windows = StateWindows(rule)
        self._width = rule.window
        self.scores: dict[str, Tensor] = {}
        """Site key -> (n_groups, n_state), the mean score over the last window."""

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        """Score the end of the first row; the scan itself is left alone."""
        recurrence = Recurrence(scan)
        width = recurrence.tokens if self._width == "sequence" else int(self._width)
        start = max(0, recurrence.tokens - width)
        state = recurrence.empty()
        recurrence.sizes(state, 0, start)
        sizes = recurrence.sizes(state, start, recurrence.tokens)
        means = self._windows.means(site, sizes, recurrence.C[:, start:], None)
        self.scores[site.key] = means[0, 0]
        return scan
