import json

import pandas as pd
import pytest

from keepset import store


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write_half():
        with store.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_good_write_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with store.replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert len(list(path.parent.iterdir())) == 1


def test_tables_come_back_with_their_provenance(tmp_path):
    table = pd.DataFrame({"nll": [0.1, 0.2], "window": ["1", "sequence"]})
    store.write_table(table, tmp_path / "t.parquet", {"device": "cpu"})
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table, check_dtype=False)
    assert json.loads((tmp_path / "t.json").read_text()) == {"device": "cpu"}


def test_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"nll": [0.1, 0.2]})
    for name in ("a", "b"):
        store.write_table(table, tmp_path / f"{name}.parquet", {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_fingerprints_see_boundaries():
    assert store.fingerprint("ab", "c") != store.fingerprint("a", "bc")
    assert store.fingerprint("ab") == store.fingerprint(b"ab")
