"""Cut experts: what transformers cannot build is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from keepset.errors import ModelError
from keepset.hold.cut_experts import prune_experts
from keepset.sites.experts import find_expert_sites

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(6))


def test_a_number_of_experts_that_makes_another_model_is_refused(tiny_model: Factory) -> None:
    """Jamba's FFN is dense where there is one expert."""
    model = tiny_model("jamba", num_experts=4, num_experts_per_tok=2)
    with torch.no_grad():
        before = model(input_ids=IDS, use_cache=False).logits
    masks = {site.key: torch.arange(4) < 1 for site in find_expert_sites(model)}
    with pytest.raises(ModelError, match=r"jamba: with 1 of 4 experts .*feed_forward\.down_proj"):
        prune_experts(model, masks)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, before)
    prune_experts(model, {key: torch.arange(4) < 2 for key in masks})
    assert (model.config.num_experts, find_expert_sites(model)[0].n_units) == (2, 2)
