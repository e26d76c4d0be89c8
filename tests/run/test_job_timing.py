"""Timings of jobs: what is written, and what is added up from them."""

from __future__ import annotations

import io
import math
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from keepset.cli import main
from keepset.errors import RecordError
from keepset.run import timing


def work(rule, **wildcards):
    return SimpleNamespace(rule=rule, wildcards=wildcards, output=["results/s/m/a.parquet"])


def run(rule, cpu_s=0.0, **wildcards):
    with timing.timed(work(rule, **wildcards), timing.Start(time.monotonic() - 2, cpu_s)):
        sum(range(10**6))


def test_a_job_writes_what_it_took(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = time.process_time()
    run("evaluate", cpu_s=1000.0, model="m", corpus="c")
    table = pd.read_csv("results/s/benchmarks/evaluate/m.c.tsv", sep="\t")
    assert list(table.columns) == [
        *("rule", "model", "corpus"),
        *("s", "cpu_s", "startup_s", "max_rss_mb"),
    ]
    row = table.iloc[0]
    assert (row["rule"], row["model"], row["corpus"]) == ("evaluate", "m", "c")
    assert 2 <= row["s"] < 60
    assert 1000 + before - 1e-3 <= row["startup_s"] < row["cpu_s"]
    assert row["max_rss_mb"] > 10


def test_where_the_system_tells_no_memory_the_rest_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "resource", None)
    run("evaluate", model="m", corpus="c")
    (row,) = timing.read("results/s").to_dict("records")
    assert math.isnan(row["max_rss_mb"])
    assert row["s"] >= 2
    assert "1 jobs" in timing.text(timing.read("results/s"))


def test_a_job_that_fails_writes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no"), timing.timed(work("join"), timing.Start(0.0)):
        raise ValueError("no")
    assert not list(tmp_path.rglob("*.tsv"))


def write(folder, name, **row):
    path = folder / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(path, sep="\t", index=False)


@pytest.fixture
def folder(tmp_path):
    """Timings of four jobs, and one by an earlier version."""
    measured = ("s", "cpu_s", "startup_s", "max_rss_mb")
    jobs = {
        "evaluate/1_3.c.tsv": ("evaluate", "1_3", "c", 10, 8, 2, 700),
        "evaluate/b.c.tsv": ("evaluate", "b", "c", 20, 16, 2, 900),
        "prepare/b.tsv": ("prepare", "b", None, 5, 5, 1, 100),
        "join.tsv": ("join", None, None, 1, 1, 1, 50),
    }
    for name, row in jobs.items():
        cells = zip(("rule", "model", "corpus", *measured), row, strict=True)
        write(tmp_path, name, **{key: value for key, value in cells if value is not None})
    write(tmp_path, "old.tsv", s=1.0, cpu_time=9.0)
    return tmp_path


def cells(*values):
    return dict(zip(("jobs", "b", "1_3", "none", "all"), values, strict=True))


def test_timings_are_added_up(folder):
    timings = timing.read(folder)
    assert set(timings["model"]) == {"1_3", "b", ""}
    table = timing.summary(timings)
    assert list(table["rule"]) == ["evaluate", "prepare", "join", "all"]
    assert table.set_index("rule").T.to_dict() == {
        "evaluate": {**cells(2, 16, 8, 0, 24), "startup": 4, "longest": 20, "max_rss_mb": 900},
        "prepare": {**cells(1, 5, 0, 0, 5), "startup": 1, "longest": 5, "max_rss_mb": 100},
        "join": {**cells(1, 0, 0, 1, 1), "startup": 1, "longest": 1, "max_rss_mb": 50},
        "all": {**cells(4, 21, 8, 1, 30), "startup": 6, "longest": 20, "max_rss_mb": 900},
    }
    text = timing.text(timings)
    assert "4 jobs: 36 s, of CPU 30 s; start-up 6 s of it (20.0%); largest memory 900 MiB" in text


def test_the_command_prints_them(folder, capsys):
    assert main(["times", str(folder)]) == 0
    assert "start-up 6 s of it (20.0%)" in capsys.readouterr().out
    assert main(["times", str(folder), "--csv"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    assert sorted(rows["s"]) == [1, 5, 10, 20]
    assert sorted(rows["model"]) == ["", "1_3", "b", "b"]


def test_a_folder_without_timings_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no timings"):
        timing.read(tmp_path)
