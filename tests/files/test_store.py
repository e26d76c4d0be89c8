import json
import multiprocessing
import random
import time

import pandas as pd
import pytest

from keepset.files import store


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


def _write_on_and_on(path, ready):
    ready.set()
    for number in range(10**9):
        rows = 200 + number % 7
        store.write_table(pd.DataFrame({"x": [0.5] * rows}), path, {"rows": rows})


def test_a_kill_at_any_moment_leaves_whole_files(tmp_path):
    path, chance = tmp_path / "t.parquet", random.Random(7)
    fork = multiprocessing.get_context("fork")
    left = 0
    for _ in range(40):
        ready = fork.Event()
        process = fork.Process(target=_write_on_and_on, args=(path, ready))
        process.start()
        ready.wait()
        time.sleep(chance.uniform(0.0, 0.05))
        process.kill()
        process.join()
        left += len(list(tmp_path.glob(".*")))
        if path.exists():
            assert 200 <= len(pd.read_parquet(path)) < 207
            assert 200 <= json.loads(path.with_suffix(".json").read_text())["rows"] < 207
    assert left, "no kill came in the middle of a write"
    store.write_table(pd.DataFrame({"x": [0.5]}), path, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.json", "t.parquet"]


def test_the_file_of_a_process_that_still_writes_is_left_alone(tmp_path):
    with store.replacing(tmp_path / "x.txt") as outer:
        outer.write_text("outer")
        with store.replacing(tmp_path / "x.txt") as inner:
            inner.write_text("inner")
        assert (tmp_path / "x.txt").read_text() == "inner"
    assert (tmp_path / "x.txt").read_text() == "outer"


def test_files_of_other_names_are_left_alone(tmp_path):
    (tmp_path / ".y.txt.abc.txt").write_text("of y")
    with store.replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / ".y.txt.abc.txt").exists()
