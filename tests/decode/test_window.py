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
    """By the definition: a window keeps the best of the window before, the first of its start."""
    windows = h[0].split(WIDTH)
    chosen = [h[0, :1], *windows[:-1]]
    sets = [top_mask(part.abs().mean(dim=0, keepdim=True), score.k) for part in chosen]
    masks = torch.cat([kept.expand(len(h), -1) for kept, h in zip(sets, windows, strict=True)])
    masks[0] = True
    return masks


@pytest.mark.parametrize("sizes", [[TOKENS], [1] * TOKENS, [3, 1, 6, 5], [4, 4, 4, 3]])
def test_sets_do_not_depend_on_how_tokens_come(score, sizes):
    h = torch.randn(1, TOKENS, 48, generator=torch.Generator().manual_seed(1))
    window = RunningWindow(WIDTH, score, units_of=lambda x: x)
    masks = [window.mask(piece) for piece in h.split(sizes, dim=1)]
    assert torch.equal(torch.cat(masks, dim=1)[0], expected(h, score))


def test_tokens_that_wait_count_like_the_others(score):
    h = torch.randn(1, TOKENS, 48, generator=torch.Generator().manual_seed(2))
    window = RunningWindow(WIDTH, score, units_of=lambda x: x)
    sets = [window.mask(h[:, :1])[0]]
    for token in h[0, 1:].split(1):
        if window.full:
            window.turn()
        sets.append(window.kept)
        window.add_input(token)
    assert torch.equal(torch.cat(sets), expected(h, score))
    assert torch.equal(window.units, sets[-1][0].nonzero()[:, 0])
    window.restart()  # to a new context
    assert window.full
    assert window.kept is None


def test_a_bos_token_is_in_no_window(score):
    h = torch.randn(2, TOKENS, 48, generator=torch.Generator().manual_seed(3))
    bos = torch.full((2, 1, 48), 9.0)
    for sizes in ([TOKENS + 1], [1] * (TOKENS + 1), [3, 1, 6, 6]):
        window = RunningWindow(WIDTH, score, units_of=lambda x: x, n_bos=1)
        pieces = torch.cat([bos, h], dim=1).split(sizes, dim=1)
        masks = torch.cat([window.mask(piece) for piece in pieces], dim=1)
        assert masks[:, 0].all()
        for row in range(2):
            assert torch.equal(masks[row, 1:], expected(h[row : row + 1], score))
