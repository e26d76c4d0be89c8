"""Models of the hub: from its cache, downloaded once, or refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, strategies as st
from prepared import CPU

from keepset import models
from keepset.errors import ModelError
from keepset.models.checkpoint import relevant
from keepset.settings import Model

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
