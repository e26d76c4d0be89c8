"""GGUF files: all that they say is read, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_models import write_llama
from prepared import CPU, logits
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset import models
from keepset.errors import ModelError
from keepset.settings import Model

Factory = Callable[..., PreTrainedModel]


def loaded(file: Path) -> PreTrainedModel:
    info = models.prepare("m", Model(path=str(file)), file.parent / "results")
    return models.load(info, CPU, torch.float32)[0]


@pytest.fixture
def llama(tiny_model: Factory) -> PreTrainedModel:
    return tiny_model("llama")


@pytest.mark.parametrize("place", ["snapshots/r/m.gguf", "blobs/3f9c"])
def test_a_file_is_known_by_its_content(llama: PreTrainedModel, tmp_path: Path, place: str) -> None:
    """A cache keeps files under hashes, and links with their names lead there."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/r").mkdir(parents=True)
    write_llama(tmp_path / "m.gguf", llama).rename(tmp_path / "blobs/3f9c")
    (tmp_path / "snapshots/r/m.gguf").symlink_to("../../blobs/3f9c")
    assert torch.allclose(logits(loaded(tmp_path / place)), logits(llama), atol=1e-6)


def test_what_lies_beside_a_file_is_not_read(llama: PreTrainedModel, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{")
    file = write_llama(tmp_path / "m.gguf", llama)
    assert torch.allclose(logits(loaded(file)), logits(llama), atol=1e-6)


@pytest.mark.parametrize("part", [1, 2])
def test_all_parts_of_a_split_file_are_read(
    llama: PreTrainedModel, tmp_path: Path, part: int
) -> None:
    write_llama(tmp_path / "m.gguf", llama, split=12)
    file = tmp_path / f"m-0000{part}-of-00002.gguf"
    assert torch.allclose(logits(loaded(file)), logits(llama), atol=1e-6)


def test_a_header_is_parsed_once(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    parse = gguf.GGUFReader.__init__

    def counted(reader: gguf.GGUFReader, path: Any, *args: Any) -> None:
        read.append(str(path))
        parse(reader, path, *args)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counted)
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    loaded(write_llama(tmp_path / "m.gguf", llama))
    assert len(read) == 1
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_a_split_file_that_is_not_whole(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", llama, split=8)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    first = tmp_path / "m-00001-of-00003.gguf"
    with pytest.raises(ModelError, match=r"one of 3 parts, and m-00002-of-00003\.gguf are missing"):
        loaded(first)
    with pytest.raises(ModelError, match=r"one of 3 parts; give them the names NAME-00001-of-"):
        loaded(first.rename(tmp_path / "m.gguf"))


def test_missing_tensors_are_not_made_up(llama: PreTrainedModel, tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", llama, skip=["blk.1.ffn_down.weight"])
    with pytest.raises(ModelError, match=r"m\.gguf lacks 1 .*layers\.1\.mlp\.down_proj\.weight"):
        loaded(file)
    assert not (tmp_path / "results/checkpoint").exists()


def test_tensors_that_nobody_reads(llama: PreTrainedModel, tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": torch.ones(32)}
    file = write_llama(tmp_path / "m.gguf", llama, extra=bias)
    with pytest.raises(ModelError, match=r"1 tensors that .* not read: blk\.0\.attn_q\.bias"):
        loaded(file)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize("original", [48, 64, 300])  # with 64, one frequency is between the two
def test_rotary_factors_are_applied(
    tiny_model: Factory, llama: PreTrainedModel, tmp_path: Path, original: int
) -> None:
    rope = {**LLAMA3, "original_max_position_embeddings": original}
    scaled: Any = tiny_model("llama", rope_parameters=rope)
    plain: Any = llama
    factors = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    file = write_llama(tmp_path / "m.gguf", scaled, extra={"rope_freqs.weight": factors})
    assert not torch.allclose(logits(scaled), logits(llama), atol=1e-3)
    assert torch.allclose(logits(loaded(file)), logits(scaled), atol=1e-5)


def test_what_the_header_must_say(llama: PreTrainedModel, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base.gguf", llama, unsaid=["rope.freq_base"])
    assert torch.allclose(logits(loaded(base)), logits(llama), atol=1e-6)
    epsilon = write_llama(tmp_path / "e.gguf", llama, unsaid=["attention.layer_norm_rms_epsilon"])
    with pytest.raises(ModelError, match=r"header lacks llama\.attention\.layer_norm_rms_epsilon"):
        loaded(epsilon)


def test_a_shape_that_the_header_does_not_give(llama: PreTrainedModel, tmp_path: Path) -> None:
    file = write_llama(tmp_path / "m.gguf", llama, header={"attention.key_length": 16})
    with pytest.raises(ModelError, match=r"other shapes .*_proj\.weight is \("):
        loaded(file)


def test_rotary_factors_of_another_kind(llama: PreTrainedModel, tmp_path: Path) -> None:
    odd = {"rope_freqs.weight": torch.tensor([1.0, 3.0, 2.0, 8.0])}
    with pytest.raises(ModelError, match=r"rope_freqs\.weight scales the rotary frequencies"):
        loaded(write_llama(tmp_path / "m.gguf", llama, extra=odd))
    none = {"rope_freqs.weight": torch.ones(4)}
    file = write_llama(tmp_path / "n.gguf", llama, extra=none)
    assert torch.allclose(logits(loaded(file)), logits(llama), atol=1e-6)


@pytest.mark.parametrize(
    ("header", "rope"),
    [
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
    ],
)
def test_rotary_scaling_of_the_header_is_applied(
    tiny_model: Factory, tmp_path: Path, header: dict[str, Any], rope: dict[str, Any]
) -> None:
    scaled = tiny_model("llama", rope_parameters={**rope, "rope_theta": 10000.0})
    file = write_llama(tmp_path / "m.gguf", scaled, header=header)
    assert torch.allclose(logits(loaded(file)), logits(scaled), atol=1e-5)


@pytest.mark.parametrize(
    "header",
    [
        {"attention.sliding_window": 16},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"logit_scale": 0.25},
        {"expert_count": 8},
        {"attention.causal": False},
        {"attention.value_length": 16},
        {"rope.scaling.type": "longrope"},
        {"some.new.part": 3},
    ],
)
def test_what_the_model_would_not_do_is_refused_by_name(
    llama: PreTrainedModel, tmp_path: Path, header: dict[str, Any]
) -> None:
    (key,) = header
    with pytest.raises(ModelError, match=f"would ignore llama.{key} = .* of the header"):
        loaded(write_llama(tmp_path / "m.gguf", llama, header=header))


@pytest.mark.parametrize(
    "header",
    [
        {"attention.sliding_window": 0},
        {"logit_scale": 1.0},
        {"expert_count": 0},
        {"attention.key_length": 8, "attention.value_length": 8},
        {"tensor_data_layout": "Meta AI original pth"},
        {"rope.scaling.finetuned": True},
    ],
)
def test_what_says_nothing_new_is_accepted(
    llama: PreTrainedModel, tmp_path: Path, header: dict[str, Any]
) -> None:
    file = write_llama(tmp_path / "m.gguf", llama, header=header)
    assert torch.allclose(logits(loaded(file)), logits(llama), atol=1e-6)


@pytest.mark.parametrize(("adds", "expected"), [(True, 1), (False, None)])
def test_the_header_says_whether_a_bos_is_added(
    llama: PreTrainedModel, tmp_path: Path, adds: bool, expected: int | None
) -> None:
    header = {"tokenizer.ggml.add_bos_token": adds}
    file = write_llama(tmp_path / "m.gguf", llama, header=header)
    assert models.prepare("m", Model(path=str(file)), tmp_path / "results")["bos"] == expected


@pytest.mark.parametrize("split", ["smollm", "llama-bpe", "default"])
def test_ways_to_split_text_that_are_known(
    llama: PreTrainedModel, tmp_path: Path, split: str
) -> None:
    loaded(write_llama(tmp_path / "m.gguf", llama, header={"tokenizer.ggml.pre": split}))


def test_a_way_to_split_text_that_is_not_known(
    llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    header = {"tokenizer.ggml.pre": "viking"}
    file = write_llama(tmp_path / "m.gguf", llama, header=header)
    with pytest.raises(ModelError, match=r"ignore tokenizer\.ggml\.pre = viking .*--tokenizer"):
        loaded(file)
    tiny_tokenizer.save_pretrained(tmp_path / "words")
    source = Model(path=str(file), tokenizer=str(tmp_path / "words"))
    info = models.prepare("m", source, tmp_path / "results")
    assert models.load_tokenizer(info)("th").input_ids == tiny_tokenizer("th").input_ids
