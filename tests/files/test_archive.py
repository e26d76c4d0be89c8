import subprocess
import sys

import pytest
import torch

from keepset.errors import CacheError
from keepset.files import archive

OWNER = {"model": "m", "seeds": [1, 2]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    archive.save({"b": torch.ones(2, 3).T, "a": torch.zeros(1)}, path, "kind-1", OWNER)
    return path


def test_round_trip_is_sorted(path):
    tensors = archive.load(path, "kind-1", OWNER, "numbers")
    assert list(tensors) == ["a", "b"]
    assert torch.equal(tensors["b"], torch.ones(3, 2))


def test_every_process_writes_the_same_bytes(path, tmp_path):
    code = (
        "import sys, torch; from keepset.files import archive;"
        "archive.save({'b': torch.ones(2, 3).T, 'a': torch.zeros(1)}, sys.argv[1], 'kind-1',"
        " {'seeds': [1, 2], 'model': 'm'})"
    )
    other = tmp_path / "y.safetensors"
    subprocess.run([sys.executable, "-c", code, str(other)], check=True)
    assert other.read_bytes() == path.read_bytes()


def test_only_one_key_of_metadata(path):
    # safetensors writes several in an order that differs from process to process.
    header = path.read_bytes()[8:].partition(b"}}")[0]
    assert header.count(b'"keepset":') == 1
    assert b'"format":' not in header


def test_a_file_says_what_it_belongs_to(path):
    assert archive.owner_of(path, "kind-1", "numbers") == OWNER
    with pytest.raises(CacheError, match="not the numbers of this version"):
        archive.owner_of(path, "kind-2", "numbers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"owner": {**OWNER, "model": "n"}},
            "stale numbers: model is 'm' in the file and 'n' now",
        ),
        ({"owner": {"model": "m"}}, r"stale numbers: seeds is \[1, 2\] in the file and None"),
        ({"kind": "kind-2"}, "not the numbers of this version"),
    ],
)
def test_what_belongs_to_something_else_is_refused(path, change, message):
    wanted = {"path": path, "kind": "kind-1", "owner": OWNER, "what": "numbers"}
    with pytest.raises(CacheError, match=message):
        archive.load(**{**wanted, **change})


def test_a_file_without_tensors_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"no tensors")
    for name in ("x", "nowhere"):
        with pytest.raises(CacheError, match=f"{name}: the numbers cannot be read"):
            archive.load(tmp_path / name, "kind-1", OWNER, "numbers")
