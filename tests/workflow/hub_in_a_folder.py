"""The papers' checkpoints and datasets at toy size, as a hub's cache keeps them.

Every repository has the files that the published one has: the same configuration class, the same
kinds of weight and tokenizer files, under its own name. Only the numbers are small and random.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel

Factory = Callable[..., PreTrainedModel]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit that `main` points to."""
LETTERS = [chr(code) for code in range(33, 127)]


def store(home: Path, repository: str, revision: str | None, made: Path) -> Path:
    """Put the files of `made` into the cache, as blobs with links to them.

    Returns:
        The snapshot.
    """
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = COMMIT if revision in (None, "main") else revision
    snapshot = folder / "snapshots" / commit
    for part in (snapshot, folder / "blobs", folder / "refs"):
        part.mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    for file in made.iterdir():
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def store_dataset(
    home: Path, name: str, config: str | None, splits: dict[str, list[str]], scratch: Path
) -> None:
    """Leave a dataset in the cache as `datasets` does after it has been loaded from the hub."""
    made = scratch / name.split("/")[1]
    made.mkdir(parents=True)
    card = f"---\nconfigs:\n- config_name: {config or 'default'}\n  data_files:\n"
    for split, rows in splits.items():
        lines = [json.dumps({"text": row}) + "\n" for row in rows]
        (made / f"{split}.jsonl").write_text("".join(lines))
        card += f"  - split: {split}\n    path: {split}.jsonl\n"
    (made / "README.md").write_text(f"{card}---\n")
    cache = home / "datasets"
    datasets.load_dataset(str(made), name=config, cache_dir=str(cache))
    shutil.move(cache / made.name, cache / name.replace("/", "___"))


def write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """JSON files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def byte_level(special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE, as those of GPT-2 and its kin, with two merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*special, *alphabet, "th", "the"]
    vocabulary = {token: index for index, token in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def opt_tokenizer(folder: Path) -> int:
    """vocab.json and merges.txt, no tokenizer.json; returns the size of the vocabulary."""
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.model.save(str(folder))
    ends = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    rest = {"add_bos_token": True, "add_prefix_space": False, "errors": "replace"}
    config = {**ends, **rest, "tokenizer_class": "GPT2Tokenizer"}
    write(folder, {"tokenizer_config.json": config, "special_tokens_map.json": ends})
    return tokenizer.get_vocab_size()


def qwen_tokenizer(folder: Path) -> int:
    """tokenizer.json beside vocab.json and merges.txt."""
    tokenizer = byte_level(["<|endoftext|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None}
    config = {**ends, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    write(folder, {"tokenizer_config.json": config})
    return tokenizer.get_vocab_size()


def neox_tokenizer(folder: Path) -> int:
    """The tokenizer of EleutherAI/gpt-neox-20b, which published Mamba-2 checkpoints use."""
    tokenizer = byte_level(["<|endoftext|>", "<|padding|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {**ends, "add_prefix_space": False, "tokenizer_class": "GPTNeoXTokenizer"}
    write(folder, {"tokenizer_config.json": config, "special_tokens_map.json": ends})
    return tokenizer.get_vocab_size()


def mistral_tokenizer(folder: Path) -> int:
    """SentencePiece's kind of BPE, which falls back to bytes."""
    special = ["<unk>", "<s>", "</s>"]
    entries = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    vocabulary = {token: index for index, token in enumerate(entries)}
    model = models.BPE(
        vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**ends, "add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}
    write(folder, {"tokenizer_config.json": config, "special_tokens_map.json": ends})
    return tokenizer.get_vocab_size()


def pickled(model: PreTrainedModel, folder: Path) -> None:
    """config.json and pytorch_model.bin, as OPT is published, in float16."""
    model.config.dtype = "float16"
    model.config.save_pretrained(folder)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")


def make_opt(folder: Path, build: Factory, **shape: Any) -> None:
    """OPT; `shape` for opt-350m's norms after the layers and its projections."""
    size = opt_tokenizer(folder)
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    pickled(build("opt", vocab_size=size, **ends, **shape), folder)


def make_qwen(folder: Path, build: Factory) -> None:
    """Qwen2.5: grouped queries, tied embeddings, safetensors."""
    size = qwen_tokenizer(folder)
    build("qwen2", vocab_size=size, tie_word_embeddings=True, pad_token_id=None).save_pretrained(
        folder
    )


def make_zamba(folder: Path, build: Factory) -> None:
    """Zamba2-1.2B: one shared block at two depths, with adapters of attention too."""
    size = mistral_tokenizer(folder)
    shape = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2}
    more = {"num_mem_blocks": 1, "use_shared_attention_adapter": True, "use_mem_rope": True}
    build("zamba2", vocab_size=size, **shape, **more).save_pretrained(folder)


def make_mamba(folder: Path, build: Factory, vocabulary: int) -> None:
    """What the package mamba_ssm saves: its own arguments and names, and no tokenizer."""
    multiple = 16
    padded = -(-vocabulary // multiple) * multiple
    model = build("mamba2", vocab_size=padded, tie_word_embeddings=True)
    state = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor.half()
        for name, tensor in model.state_dict().items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    ssm = {"layer": "Mamba2", "d_state": 8, "headdim": 16, "chunk_size": 16}
    arguments = {"d_model": 32, "d_intermediate": 0, "n_layer": 2, "vocab_size": vocabulary}
    flags = {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}
    ends = {"pad_vocab_size_multiple": multiple, "tie_embeddings": True}
    attention = {"attn_layer_idx": [], "attn_cfg": {}}
    write(folder, {"config.json": {**arguments, "ssm_cfg": ssm, **attention, **flags, **ends}})


def wikitext(prose: str) -> Iterable[str]:
    """Prose as rows of WikiText-2: lines with their ends, blank rows, a title."""
    yield from ("", " = Letters = \n", "")
    for paragraph in prose.split("\n\n"):
        yield from (f" {paragraph} \n", "")
