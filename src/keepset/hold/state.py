"""Hold a keep rule on the recurrent state of a running model. All that is swapped is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from keepset.errors import ConfigError, ModelError
from keepset.hold.recurrence import Recurrence, Scan
from keepset.hold.windows import Windowed
from keepset.kernels.dispatch import SCAN, STEP, mixer_modules, standing_in
from keepset.rules.masks import Masks, spread_windows, top_mask, window_means, window_width
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import CHANNEL_SCORES, token_names
from keepset.sites.state import StateSite


class Action(Protocol):
    """Sees every scan of a mixer, and decides what runs."""

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        """A scan to run in its place, or its result y (batch, tokens, heads, head_dim)."""
        ...

    def step(self, site: StateSite, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """B and C (batch, groups, n_state) to use in a single cached step."""
        ...


class Whole:
    """Base of actions that need whole passages: they cannot run single cached steps."""

    def step(self, site: StateSite, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{site.name}: this rule runs on whole passages: give use_cache=False")


@contextmanager
def scanning(model: nn.Module, sites: Sequence[StateSite], action: Action) -> Iterator[None]:
    """Have `action` see the scans of every site; other mixers run as they are.

    Functions of transformers are replaced, not its layers. Everything is put back on exit, also
    after an exception.
    """
    running: list[StateSite | None] = [None]
    by_mixer = {site.mixer: site for site in sites}

    def enter(mixer: nn.Module, *_: Any) -> None:
        running[0] = by_mixer[mixer]

    def leave(*_: Any) -> None:
        running[0] = None

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.mixer.register_forward_pre_hook(enter))
            stack.enter_context(site.mixer.register_forward_hook(leave, always_call=True))
        for module in mixer_modules(model):
            functions = {
                SCAN: _seen_scan(getattr(module, SCAN), running, action),
                STEP: _seen_step(getattr(module, STEP), running, action),
            }
            stack.enter_context(standing_in([module], functions))
        yield


def _seen_scan(
    original: Callable[..., Any], running: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    def seen(x, dt, A, B, C, chunk_size, D=None, **rest):  # type: ignore[no-untyped-def]
        scan = Scan(x, dt, A, B, C, D, {"chunk_size": chunk_size, **rest})
        site = running[0]
        result = scan if site is None else action.scan(site, scan)
        if isinstance(result, Scan):
            return result.run(original)
        if rest.get("return_final_states"):
            raise ModelError("this rule runs on whole passages: give use_cache=False")
        return result.to(x.dtype)

    return seen


def _seen_step(
    original: Callable[..., Any], running: Sequence[StateSite | None], action: Action
) -> Callable[..., Any]:
    def seen(state, x, dt, A, B, C, *rest, **options):  # type: ignore[no-untyped-def]
        if running[0] is not None:
            B, C = action.step(running[0], B, C)
        return original(state, x, dt, A, B, C, *rest, **options)

    return seen


class StateMask:
    """The action of a static rule: the channels left out are neither written nor read."""

    def __init__(self, masks: Masks) -> None:
        """Keep the channels that `masks` marks: site key -> (n_groups, n_state) bool."""
        self._masks = masks

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        """Mask B and C of all tokens."""
        mask = self._masks[site.key].to(scan.B.device)
        return scan.masked(mask, mask)

    def step(self, site: StateSite, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """Mask B and C of one token."""
        mask = self._masks[site.key].to(B.device)
        return B * mask.to(B.dtype), C * mask.to(C.dtype)


class StateWindows(Windowed, Whole):
    """The action of a windowed or dynamic rule on the state.

    `access` says what a channel that is not kept loses. `read`: the state keeps everything, and C
    reads a part of it. `write`: its state is forgotten, at the start of the window, and nothing
    is written to it within. A window's score is the mean of its tokens' scores, within each group
    of heads: H^2 (`magnitude`), or H^2 C^2 (`impact`, which is GHOST's on the window).
    """

    def __init__(self, rule: Rule, **options: Any) -> None:
        """See `Windowed`.

        Raises:
            ConfigError: the rule is static, or its score or access is unknown.
        """
        super().__init__(rule, **options)
        if rule.access not in ("read", "write"):
            raise ConfigError(f"access must be read or write, got {rule.access!r}")
        score = CHANNEL_SCORES.get(rule.score)
        if score is None or score.token is None:
            raise ConfigError(
                f"score {rule.score!r} of a state cannot be taken per token;"
                f" use one of {', '.join(token_names(CHANNEL_SCORES))}"
            )
        self._seeded, self._token_score = score.seeded, score.token

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
        scores = self._dense_scores(site, recurrence)
        mask = top_mask(scores, kept)
        if self.rule.choice == "oracle":
            return mask
        return torch.cat([self._first(site, scores, kept)[:, None], mask[:, :-1]], dim=1)

    def _dense_scores(self, site: StateSite, recurrence: Recurrence) -> Tensor:
        """Scores of all windows of a state that keeps everything."""
        sizes = recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)
        return self.means(site, sizes, recurrence.C, self.valid)

    def means(self, site: StateSite, sizes: Tensor, C: Tensor, valid: Tensor | None) -> Tensor:
        """Scores of the windows of some tokens: (batch, windows, groups, n)."""
        generator = self._generator(site, sizes.device) if self._seeded else None
        score = self._token_score(sizes, C, generator)
        means = window_means(score.flatten(2), valid, self.rule.window)
        return means.unflatten(2, sizes.shape[2:])

    def _first(self, site: StateSite, scores: Tensor, kept: int) -> Tensor:
        """What a causal rule keeps in each row's first window: (batch, groups, n) bool."""
        if not self._stream:
            return torch.ones_like(scores[:, 0], dtype=torch.bool)
        return top_mask(self._before(site, scores[:, -1]), kept)

    def _forgetting(self, site: StateSite, recurrence: Recurrence, kept: int) -> Tensor:
        """Run window after window; what is not kept is zero from its start to its end."""
        tokens = recurrence.tokens
        width = window_width(self.rule.window, tokens)
        state, parts = recurrence.empty(), []
        mask = torch.empty(0)
        if self.rule.choice == "causal":
            mask = self._first(site, self._dense_scores(site, recurrence), kept)
        for start in range(0, tokens, width):
            stop = min(start + width, tokens)
            valid = None if self.valid is None else self.valid[:, start:stop]
            # Channels do not influence one another: each is scored by what it would hold if it
            # were kept.
            sizes = recurrence.sizes(state.clone(), start, stop)
            score = self.means(site, sizes, recurrence.C[:, start:stop], valid)[:, 0]
            chosen = top_mask(score, kept)
            if self.rule.choice == "oracle":
                mask = chosen
            state *= mask[:, :, None, None]
            parts.append(recurrence.read(state, start, stop, mask))
            mask = chosen
        return torch.cat(parts, dim=1)


class _LastWindow(Whole):
    """Scores the last window of the first row; the scan itself is left alone."""

    def __init__(self, rule: Rule) -> None:
        self._windows = StateWindows(rule)
        self.scores: dict[str, Tensor] = {}
        """Site key -> (n_groups, n_state), the mean score over the last window."""

    def scan(self, site: StateSite, scan: Scan) -> Scan:
        recurrence = Recurrence(scan)
        tokens, state = recurrence.tokens, recurrence.empty()
        start = tokens - window_width(self._windows.rule.window, tokens)
        recurrence.sizes(state, 0, start)
        sizes = recurrence.sizes(state, start, tokens)
        means = self._windows.means(site, sizes, recurrence.C[:, start:], None)
        self.scores[site.key] = means[0, 0]
        return scan


@contextmanager
def hold_static(model: nn.Module, sites: Sequence[StateSite], masks: Masks) -> Iterator[None]:
    """Hold one keep set: its channels alone are written and read."""
    with scanning(model, sites, StateMask(masks)):
        yield


@contextmanager
def hold_windows(
    model: nn.Module, sites: Sequence[StateSite], rule: Rule, **options: Any
) -> Iterator[StateWindows]:
    """Hold a windowed or dynamic rule; `options` are those of `Windowed`."""
    action = StateWindows(rule, **options)
    with scanning(model, sites, action):
        yield action


def lead_in_scores(
    model: nn.Module, sites: Sequence[StateSite], rule: Rule, lead_in: Tensor
) -> dict[int, dict[str, Tensor]]:
    """See `keepset.kinds.SiteKind`; one pass scores one window."""
    action = _LastWindow(rule)
    with scanning(model, sites, action), torch.inference_mode():
        model(input_ids=lead_in, use_cache=False)
    return {window_width(rule.window, lead_in.shape[1]): action.scores}
