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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssm_cfg": {}}, "layers are Mamba1, not Mamba2"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
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
