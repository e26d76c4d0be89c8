"""Texts that a model cannot take in: too long, or of tokens that it does not have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from keepset import models
from keepset.errors import ModelError
from keepset.models.limits import positions_of


def mpt() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=64, vocab_size=260
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_positions_that_mpt_names_its_own_way() -> None:
    models.check_length(mpt(), 64, "blocks", "text.block")
    with pytest.raises(
        ModelError, match=r"blocks of 128 tokens are too long for a model of 64 positions; lower"
    ):
        models.check_length(mpt(), 128, "blocks", "text.block")


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("gpt2", {"n_positions": 48}, 48),
        ("gptj", {"n_positions": 48}, 48),
        ("bloom", {"seq_length": 48}, None),  # in its config.json, and no limit: ALiBi
        ("falcon", {"alibi": True}, None),
        ("falcon", {"alibi": False, "max_position_embeddings": 48}, 48),
        ("mamba2", {}, None),
    ],
)
def test_where_families_state_their_positions(
    model_type: str, settings: dict[str, int], expected: int | None
) -> None:
    assert positions_of(AutoConfig.for_model(model_type, **settings)) == expected


def test_token_ids_beyond_the_embedding(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama")
    models.check_ids(model, torch.tensor([[0, 259]]), "blocks")
    models.check_ids(model, [], "blocks")
    with pytest.raises(ModelError, match="blocks: token id 260 is beyond the 260 rows"):
        models.check_ids(model, torch.tensor([[3, 260], [4, 5]]), "blocks")
    with pytest.raises(ModelError, match="prompt: token id 300 is beyond the 260 rows"):
        models.check_ids(model, [3, 300], "prompt")
