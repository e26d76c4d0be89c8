"""The masked reference of decoding, and how far rounding moves it."""

from __future__ import annotations

import pytest
import torch

from decoding import prompt
from keepset.decode.recipe import linear_sites
from keepset.decode.reference import moved_by_rounding, reference_logits
from keepset.errors import KeepsetError
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.speed import decoding as speed

NEW = torch.tensor([9, 14, 5])


def recipe(model, share, **options):
    sites = linear_sites(model)
    rules = {site.key: Rule("magnitude", share, 1, site=site.kind) for site in sites}
    return Recipe(rules, **options)


def test_noise_is_in_the_last_bit_of_every_rule_of_a_recipe(tiny_model):
    model = tiny_model("llama")
    held = recipe(model, 0.4)
    least = recipe(model, 0.4, thresholds=dict.fromkeys(held.rules, 1e-3))
    for one in (held, least):
        plain, *noisy = (
            reference_logits(model, prompt(5), NEW, one, noise=noise) for noise in (None, 1, 1, 2)
        )
        assert plain.shape == (3, model.config.vocab_size)
        assert torch.equal(noisy[0], noisy[1])
        assert not torch.equal(noisy[0], noisy[2])
        assert 0 < float((noisy[0] - plain).abs().max()) < 0.1
        expected = max(
            float(
                (reference_logits(model, prompt(5), NEW, one, noise=draw) - plain)[-1].abs().max()
            )
            for draw in range(1, 6)
        )
        assert moved_by_rounding(model, prompt(5), NEW, one) == expected


def test_tokens_that_rounding_explains_are_timed(tiny_model, monkeypatch):
    """A wrong kernel moves logits by more than noise in the last bit does."""
    model = tiny_model("llama")
    logits = reference_logits(model, prompt(5), NEW, None)
    gap = float(logits[0].max() - logits[0].min())
    worst = int(logits[0].argmin())
    dense, sparse = speed.compare(model, prompt(5), 3, Recipe({}))
    sparse.tokens[0] = worst
    monkeypatch.setattr(speed, "compare", lambda *_, **__: (dense, sparse))
    with pytest.raises(KeepsetError, match=f"by {gap:.3g} of logit"):
        speed.decode_both(model, prompt(5), Recipe({}), 3)
    monkeypatch.setattr(speed, "moved_by_rounding", lambda *_, **__: gap)
    assert speed.decode_both(model, prompt(5), Recipe({}), 3)[1] is sparse
