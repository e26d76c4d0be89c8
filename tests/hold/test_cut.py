"""Cut states: masked = sliced = exported and loaded again, in prefill and in decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import ModelError
from keepset.hold.cut import load_pruned, prune_states, save_pruned
from keepset.hold.memories import scanning
from keepset.hold.state import StateMask
from keepset.sites.state import find_state_sites
from state_models import DELTA, FAMILIES, SELECTIVE, shape

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


CUTTABLE = (*FAMILIES, *DELTA[:-2], *SELECTIVE)
CASES = [(name, n) for name in CUTTABLE for n in (1, 2) if n <= SELECTIVE.get(name, n)]
"""(family, groups)."""


@torch.no_grad()
def decoded(model: PreTrainedModel) -> Tensor:
    """Logits of a prefill of nine tokens and eight cached steps."""
    past, rows, name = None, [], "past_key_values"
    if model.config.model_type in ("mamba2", "mamba", "falcon_mamba"):
        name = "cache_params"
    for part in (IDS[:, :9], *IDS[:, 9:].split(1, dim=1)):
        more: dict[str, Any] = {} if past is None else {name: past}
        found = model(input_ids=part, use_cache=True, **more)
        past = getattr(found, name)
        rows.append(found.logits)
    return torch.cat(rows, dim=1)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "groups"), CASES)
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
    plain.requires_grad_(False)  # with gradients torch multiplies matrices another way
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


@pytest.mark.parametrize("family", CUTTABLE)
def test_layers_of_unlike_sizes_load_through_one_call(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    more: dict[str, Any] = {}
    if family in DELTA:  # two layers with a state
        kinds = ["linear_attention", "full_attention", "linear_attention"]
        more = {"num_hidden_layers": 3, "layer_types": kinds}
    model = tiny_model(family, **more)
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


@pytest.mark.parametrize("family", ["mamba2", "mamba"])
def test_layers_that_are_made_alike_later_load_in_plain_transformers(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    model = tiny_model(family)
    prune_states(model, masks(model, [5, 2]))
    prune_states(model, masks(model, [2]))
    save_pruned(model, tiny_tokenizer, tmp_path / "small")
    expected = prefill(model)
    same(prefill(AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()), expected)
    same(prefill(load_pruned(tmp_path / "small")), expected)


def test_a_refusal_leaves_the_model_as_it_was(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    before, kept = prefill(model), masks(model, [3])
    model.config.model_type = "made_up"
    with pytest.raises(ModelError, match="made_up: which configuration key"):
        prune_states(model, kept)
    assert torch.equal(prefill(model), before)
    with pytest.raises(ModelError, match="llama: the model has no state channels to cut"):
        prune_states(tiny_model("llama"), {})


@pytest.mark.parametrize("n", [0, 6])
def test_a_state_size_that_the_configuration_has_not(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, n: int
) -> None:
    model = tiny_model("mamba2")
    prune_states(model, masks(model, [5, 2]))
    model.config.keepset_state_sizes["1"] = n
    save_pruned(model, tiny_tokenizer, tmp_path / "small")
    with pytest.raises(ModelError, match=rf"gives layer 1 {n} channels, of 5"):
        load_pruned(tmp_path / "small")


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


@pytest.mark.parametrize(
    ("family", "reason"),
    [("minimax", "share one head_dim"), ("recurrent_gemma", "gates of an RG-LRU")],
)
def test_a_memory_without_smaller_layers_is_refused(
    tiny_model: Factory, family: str, reason: str
) -> None:
    model = tiny_model(family)
    before = prefill(model)
    with pytest.raises(ModelError, match=rf"layers\.\d\..*{reason}.*hold the rule"):
        prune_states(model, masks(model, [3]))
    assert torch.equal(prefill(model), before)


@pytest.fixture(params=[[3], [5, 2]], ids=["alike", "unlike"])
def pruned(
    request: pytest.FixtureRequest,
    tiny_model: Factory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Path:
    """A checkpoint whose layers keep as many channels, or not; with tied embeddings."""
    model = tiny_model("mamba2", tie_word_embeddings=True)
    prune_states(model, masks(model, request.param))
    save_pruned(model, tiny_tokenizer, tmp_path / "small")
    return tmp_path / "small"


def edit(folder: Path, *, lacks: str = "", **extra: Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != lacks}
    save_file({**tensors, **extra}, path, metadata={"format": "pt"})


def test_a_pruned_checkpoint_that_lacks_weights(pruned: Path) -> None:
    edit(pruned, lacks="backbone.layers.0.mixer.D")
    with pytest.raises(ModelError, match=r"lacks 1 parameters .*layers\.0\.mixer\.D"):
        load_pruned(pruned)


def test_weights_of_a_pruned_checkpoint_that_are_not_read(pruned: Path) -> None:
    edit(pruned, **{"backbone.layers.0.mixer.in_proj.bias": torch.ones(3)})
    with pytest.raises(ModelError, match=r"does not read: .*layers\.0\.mixer\.in_proj\.bias"):
        load_pruned(pruned)


def test_other_files_beside_a_pruned_checkpoint_are_not_read(pruned: Path) -> None:
    expected = prefill(load_pruned(pruned))
    table = load_file(pruned / "model.safetensors")["backbone.norm_f.weight"]
    save_file({"backbone.norm_f.weight": table * 3}, pruned / "old.safetensors")
    assert torch.equal(prefill(load_pruned(pruned)), expected)


def test_an_output_layer_that_differs_from_the_embeddings_it_is_tied_to(pruned: Path) -> None:
    """transformers reads both; where states differ only one could be, so that is refused."""
    other = torch.ones_like(load_file(pruned / "model.safetensors")["backbone.embeddings.weight"])
    edit(pruned, **{"lm_head.weight": other})
    if "keepset_state_sizes" in (pruned / "config.json").read_text():
        with pytest.raises(ModelError, match=r"ties .* to another weight, and the two differ"):
            load_pruned(pruned)
    else:
        assert torch.equal(load_pruned(pruned).lm_head.weight, other)
