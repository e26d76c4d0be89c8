"""Cut states: masked = sliced = exported and loaded again, in prefill and in decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import ModelError
from keepset.hold.cut import load_pruned, prune_states, save_pruned
from keepset.hold.state import StateMask, scanning
from keepset.sites.state import find_state_sites
from state_models import FAMILIES, shape

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (2, 17), generator=torch.Generator().manual_seed(4))


def masks(model: PreTrainedModel, counts: list[int]) -> dict[str, Tensor]:
    """Random channels: `counts` per layer, in turn, the same number in every group."""
    generator, found = torch.Generator().manual_seed(1), {}
    for at, site in enumerate(find_state_sites(model)):
        mask = torch.zeros(site.n_groups, site.n_state, dtype=torch.bool)
        for row in mask:
            row[torch.randperm(site.n_state, generator=generator)[: counts[at % len(counts)]]] = 1
        found[site.key] = mask
    return found


@torch.no_grad()
def prefill(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def decoded(model: PreTrainedModel) -> Tensor:
    """Logits of a prefill of nine tokens and eight cached steps."""
    past, rows, name = None, [], "past_key_values"
    if model.config.model_type == "mamba2":
        name = "cache_params"
    for part in (IDS[:, :9], *IDS[:, 9:].split(1, dim=1)):
        more: dict[str, Any] = {} if past is None else {name: past}
        found = model(input_ids=part, use_cache=True, **more)
        past = getattr(found, name)
        rows.append(found.logits)
    return torch.cat(rows, dim=1)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_sliced_and_reloaded_are_one_model(
    tiny_model: Factory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    family: str,
    groups: int,
) -> None:
    model = tiny_model(family, **shape(family, groups))
    kept = masks(model, [3])
    with scanning(model, find_state_sites(model), StateMask(kept)):
        expected, steps = prefill(model), decoded(model)
    assert (expected - prefill(model)).abs().max() > 1e-3
    prune_states(model, kept)
    assert {site.n_state for site in find_state_sites(model)} == {3}
    same(prefill(model), expected)
    same(decoded(model), steps)
    save_pruned(model, tiny_tokenizer, tmp_path / "small")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    same(prefill(plain), expected)
    same(decoded(plain), steps)
    assert torch.equal(prefill(load_pruned(tmp_path / "small")), prefill(plain))


@pytest.mark.parametrize("n", [128, 96, 64, 38, 13, 1])
def test_every_size_of_a_large_state(tiny_model: Factory, n: int) -> None:
    model = tiny_model("mamba2", **shape("mamba2", n_state=128))
    kept = masks(model, [n])
    with scanning(model, find_state_sites(model), StateMask(kept)):
        expected, steps = prefill(model), decoded(model)
    prune_states(model, kept)
    same(prefill(model), expected)
    same(decoded(model), steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_unlike_sizes_load_through_one_call(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    model = tiny_model(family)
    kept = masks(model, [5, 2])
    with scanning(model, find_state_sites(model), StateMask(kept)):
        expected, steps = prefill(model), decoded(model)
    prune_states(model, kept)
    save_pruned(model, tiny_tokenizer, tmp_path)
    again = load_pruned(tmp_path)
    assert [s.n_state for s in find_state_sites(again)] == [
        s.n_state for s in find_state_sites(model)
    ]
    same(prefill(again), expected)
    same(decoded(again), steps)


def test_what_cannot_be_cut_is_refused(tiny_model: Factory, tmp_path: Path) -> None:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    kept = masks(model, [4])
    uneven = {key: mask.clone() for key, mask in kept.items()}
    uneven["state.001"][0] = True
    for wrong, message in (
        ({}, "state.000|layers.0.*needed, got none"),
        (uneven, r"same number of channels.*\[8, 4\]"),
        ({key: mask[:1] for key, mask in kept.items()}, r"shape \(2, 8\)"),
    ):
        with pytest.raises(ModelError, match=message):
            prune_states(model, wrong)
    assert find_state_sites(model)[0].n_state == 8
    with pytest.raises(ModelError, match="no checkpoint"):
        load_pruned(tmp_path / "nothing")
