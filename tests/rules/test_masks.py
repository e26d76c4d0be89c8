from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from keepset.errors import ConfigError, ModelError
from keepset.rules.masks import rank_units, spread_windows, top_mask, top_units, window_means
from keepset.rules.rule import Rule, n_kept

# Few distinct values, so that ties are the rule and not the exception.
tied_scores = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]),
)


def reference_mask(row: np.ndarray, k: int) -> np.ndarray:
    """The k largest, ties to the lowest index, by sorting (-value, index)."""
    order = sorted(range(len(row)), key=lambda at: (-row[at], at))
    mask = np.zeros(len(row), dtype=bool)
    mask[order[:k]] = True
    return mask


@given(tied_scores, st.data())
def test_top_mask_is_exact_and_ties_go_to_the_lowest_index(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    mask = top_mask(torch.from_numpy(scores), k).numpy()
    for row, got in zip(scores, mask, strict=True):
        np.testing.assert_array_equal(got, reference_mask(row, k))


@given(tied_scores, st.data())
def test_leaving_zero_ties_alone_gives_the_same_product(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    h = torch.from_numpy(scores)
    exact = h * top_mask(h, k)
    np.testing.assert_array_equal(h * top_mask(h, k, zeros_matter=False), exact)


@given(tied_scores, st.data())
def test_ranking_and_mask_agree(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    row = torch.from_numpy(scores[0])
    mask = torch.zeros(len(row), dtype=torch.bool)
    mask[rank_units(row)[:k]] = True
    assert torch.equal(mask, top_mask(row[None], k)[0])


def test_top_mask_keeps_leading_dimensions():
    scores = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = top_mask(scores, 2)
    assert mask.shape == scores.shape
    assert torch.equal(mask.sum(dim=-1), torch.full((2, 3), 2))


@pytest.mark.parametrize("k", [0, 6])
def test_top_mask_refuses_impossible_counts(k):
    with pytest.raises(ConfigError, match=f"cannot keep {k} of 5"):
        top_mask(torch.rand(1, 5), k)


@given(st.integers(1, 20_000), st.integers(0, 999))
def test_kept_counts_are_exact_decimals(n_units, thousandths):
    out = Fraction(thousandths, 1000) * n_units
    assert n_kept(n_units, thousandths / 1000) == n_units - out.numerator // out.denominator


def test_kept_counts_survive_binary_fractions():
    # 0.29 * 100 = 28.999999999999996 and 0.57 * 100 = 56.99999999999999 in floating point
    assert n_kept(100, 0.29) == 71
    assert n_kept(100, 0.57) == 43
    assert n_kept(1536, 0.9) == 154
    assert n_kept(1, 0.99) == 1


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ConfigError, match="sparsity"):
        n_kept(10, sparsity)


@pytest.mark.parametrize("window", [0, -3, "never", 1.5, True])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ConfigError, match="window"):
        Rule("magnitude", 0.5, window)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"choice": "causl"}, "choice must be oracle or causal, got 'causl'"),
        ({"access": "read"}, "access to ffn must be one of none, both, got 'read'"),
        ({"site": "state", "access": "reed"}, "one of none, both, read, write, got 'reed'"),
    ],
)
def test_words_that_no_rule_knows_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Rule("magnitude", 0.9, 8, **words)


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_nothing_is_chosen_on_nan(place, k):
    score = torch.arange(8.0)
    score[place] = float("nan")
    for choose in (rank_units, lambda s: top_mask(s[None], k), lambda s: top_units(s, k)):
        with pytest.raises(ModelError, match="NaN among the scores"):
            choose(score)


def test_methods_are_places_on_the_dial():
    assert Rule("magnitude", 0.5, "corpus").method == "static"
    assert Rule("magnitude", 0.5, 1).method == "dynamic"
    assert Rule("magnitude", 0.5, 1, "causal").method == "windowed"
    assert Rule("magnitude", 0.5, "sequence").method == "windowed"


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.data())
def test_window_means_match_a_loop(batch, tokens, window, data):
    values = torch.tensor(
        data.draw(hnp.arrays(np.float32, (batch, tokens, 2), elements=st.floats(0, 8, width=16)))
    )
    valid = torch.tensor(data.draw(hnp.arrays(np.bool_, (batch, tokens))))
    means = window_means(values, valid, window)
    width = min(window, tokens)
    assert means.shape == (batch, -(-tokens // width), 2)
    if width == 1:
        assert torch.equal(means, values)
        return
    for row in range(batch):
        for at in range(means.shape[1]):
            inside = slice(at * width, (at + 1) * width)
            kept = values[row, inside][valid[row, inside]]
            expected = kept.mean(dim=0) if len(kept) else torch.zeros(2)
            torch.testing.assert_close(means[row, at], expected)


@given(st.integers(1, 9), st.integers(1, 12))
def test_every_token_gets_its_own_windows_mask(tokens, window):
    width = min(window, tokens)
    windows = -(-tokens // width)
    mask = torch.arange(windows)[None, :, None]
    spread = spread_windows(mask, tokens, window)
    assert spread[0, :, 0].tolist() == [token // width for token in range(tokens)]


def test_sequence_is_one_window():
    values = torch.rand(2, 5, 3)
    torch.testing.assert_close(window_means(values, None, "sequence")[:, 0], values.mean(dim=1))
    assert spread_windows(torch.ones(2, 1, 3), 5, "sequence").shape == (2, 5, 3)


@pytest.mark.parametrize("zeros", [True, False])
def test_top_units_are_those_of_the_mask(zeros):
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 1000):  # many ties, few
        for k in (1, 5, 19, 20):
            score = torch.randint(0, levels, (20,), generator=generator).float()
            mask = top_mask(score[None], k)[0]
            if not zeros:
                mask &= score > 0
            found = top_units(score, k, zeros=zeros)
            assert found.sort().values.tolist() == mask.nonzero()[:, 0].tolist()
    with pytest.raises(ConfigError, match="cannot keep 21 of 20"):
        top_units(torch.zeros(20), 21)


@pytest.mark.parametrize("rest", [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("zeros_matter", [True, False])
def test_nan_is_refused_beside_ties_too(rest, k, zeros_matter):
    with pytest.raises(ModelError, match="NaN among the scores"):
        top_mask(torch.tensor([[float("nan"), *rest]]), k, zeros_matter=zeros_matter)
