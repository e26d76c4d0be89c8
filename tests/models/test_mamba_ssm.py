"""Original checkpoints of mamba_ssm: converted, the same model, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset import models
from keepset.errors import ModelError
from keepset.settings import Model
from keepset.sites.state import find_state_sites
from state_models import shape

Factory = Callable[..., PreTrainedModel]
CONFIG: dict[str, Any] = {
    "d_model": 32,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 257,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2, "chunk_size": 16},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 4,
    "tie_embeddings": True,
}


@pytest.fixture
def original(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> tuple[Path, PreTrainedModel, Model]:
    """A checkpoint as that package saves it, what it is, and how it is configured."""
    model = tiny_model("mamba2", **shape("mamba2", 2), tie_word_embeddings=True)
    folder = tmp_path / "original"
    folder.mkdir()
    state = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor.half()
        for name, tensor in model.state_dict().items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = Model(path=str(folder), tokenizer=str(tmp_path / "tokenizer"))
    return folder, model, source


def test_the_converted_model_is_the_same(
    original: tuple[Path, PreTrainedModel, Model], tmp_path: Path
) -> None:
    folder, model, source = original
    info = models.prepare("m", source, tmp_path / "made")
    assert info["architecture"] == "Mamba2ForCausalLM"
    assert info["checkpoint"] == str(tmp_path / "made/checkpoint")
    found, tokenizer = models.load(info, torch.device("cpu"), torch.float32)
    ids = torch.randint(4, 260, (2, 21))
    with torch.no_grad():
        expected = model.half().float()(input_ids=ids, use_cache=False).logits
        assert torch.equal(found(input_ids=ids, use_cache=False).logits, expected)
    assert [site.n_units for site in find_state_sites(found)] == [16, 16]
    assert tokenizer.vocab_size == 260
    assert folder.is_dir()


SPELLED_OUT: dict[str, Any] = {
    "rmsnorm": True,
    "norm_before_gate": False,
    "D_has_hdim": False,
    "activation": "swish",
    "learnable_init_states": False,
    "d_ssm": None,
    "use_mem_eff_path": True,
    "A_init_range": [1, 16],
    "conv_init": None,
    "dt_min": 0.001,
    "dt_max": 0.2,
    "dt_init_floor": 1e-4,
    "sequence_parallel": True,
    "process_group": None,
}


@pytest.mark.parametrize("inner", [None, 64])
def test_defaults_may_be_spelled_out(
    original: tuple[Path, PreTrainedModel, Model], tmp_path: Path, inner: int | None
) -> None:
    folder, _, source = original
    plain = models.prepare("m", source, tmp_path / "plain")["fingerprint"]
    ssm = {**CONFIG["ssm_cfg"], **SPELLED_OUT, "d_ssm": inner}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "ssm_cfg": ssm}))
    assert models.prepare("m", source, tmp_path / "made")["fingerprint"] == plain


def test_an_output_layer_that_differs_from_the_embeddings_it_is_tied_to(
    original: tuple[Path, PreTrainedModel, Model], tmp_path: Path
) -> None:
    folder, _, source = original
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"] = state["backbone.embedding.weight"] + 1
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"ties lm_head\.weight to .*, and the two differ"):
        models.prepare("m", source, tmp_path / "made")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssm_cfg": {}}, "layers are Mamba1, not Mamba2"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg.rmsnorm = False"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate = True"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 32}}, "ssm_cfg.d_ssm = 32"),
        ({"n_layer": 3}, "does not fit Mamba-2"),
    ],
)
def test_what_transformers_does_not_have_is_refused(
    original: tuple[Path, PreTrainedModel, Model],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    folder, _, source = original
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ModelError, match=rf"models\.m: .*{message}"):
        models.prepare("m", source, tmp_path / "made")
    assert not (tmp_path / "made/checkpoint").exists()


def test_a_tokenizer_is_needed(
    original: tuple[Path, PreTrainedModel, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, source = original
    with pytest.raises(ModelError, match=r"models\.m\.tokenizer: .*EleutherAI/gpt-neox-20b"):
        models.prepare("m", Model(path=str(folder)), tmp_path / "made")
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04truncated")
    with pytest.raises(ModelError, match="cannot be read"):
        models.prepare("m", source, tmp_path / "made")
