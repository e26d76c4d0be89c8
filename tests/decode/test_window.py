"""The running window alone: which tokens it counts, and which set it holds."""

import pytest
import torch

from keepset.decode.score import UnitScore
from keepset.decode.window import RunningWindow
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule
from keepset.sites.ffn import find_ffn_sites

WIDTH, TOKENS = 4, 15


@pytest.fixture
def score(tiny_model):
    return UnitScore(
        find_ffn_sites(tiny_model("llama"))[0], Rule("magnitude", 0.7, WIDTH, "causal")
    )


def expected(h, score):
    """By the definition: a window keeps the best of the window before, the first everything."""
    windows = h[0].split(WIDTH)
    sets = [torch.ones(1, h.shape[2], dtype=torch.bool)]
    sets += [top_mask(window.abs().mean(dim=0, keepdim=True), score.k) for window in windows[:-1]]
    return torch.cat([kept.expand(len(h), -1) for kept, h in zip(sets, windows, strict=True)])


@pytest.mark.parametrize("sizes", [[TOKENS], [1] * TOKENS, [3, 1, 6, 5], [4, 4, 4, 3]])
def test_sets_do_not_depend_on_how_tokens_come(score, sizes):
    h = torch.randn(1, TOKENS, 48, generator=torch.Generator().manual_seed(1))
    window = RunningWindow(WIDTH, score, units_of=lambda x: x)
    masks = [window.mask(piece) for piece in h.split(sizes, dim=1)]
    assert torch.equal(torch.cat(masks, dim=1)[0], expected(h, score))


def test_tokens_that_wait_count_like_the_others(score):
    h = torch.randn(1, TOKENS, 48, generator=torch.Generator().manual_seed(2))
    window, sets = RunningWindow(WIDTH, score, units_of=lambda x: x), []
    for token in h[0].split(1):
        if window.full:
            window.turn()
        sets.append(torch.ones(1, 48, dtype=torch.bool) if window.kept is None else window.kept)
        window.add_input(token)
    assert torch.equal(torch.cat(sets), expected(h, score))
    assert torch.equal(window.units, sets[-1][0].nonzero()[:, 0])
    window.restart()
    assert window.full
    assert window.kept is None
