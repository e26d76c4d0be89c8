"""Steps are functions: what a job calls them with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from keepset.run.step import arguments, run_step


class Files(list):
    """Files of a job; some have names."""

    def __init__(self, *paths, **named):
        super().__init__([*paths, *named.values()])
        self.items = named.items


def work(inputs, outputs, **settings):
    return SimpleNamespace(
        rule="a_rule",
        wildcards={},
        input=inputs,
        output=outputs,
        params={"settings": settings},
        log=["results/s/log"],
        threads=1,
    )


def by_name(model, blocks, output, seed): ...


def by_mapping(inputs, outputs): ...


def by_list(inputs, output): ...


@pytest.mark.parametrize(
    ("function", "job", "expected"),
    [
        (
            by_name,
            work(Files("unnamed", model="m", blocks=["b", "c"]), Files("o", "o.json"), seed=1),
            {"model": "m", "blocks": ["b", "c"], "output": "o", "seed": 1},
        ),
        (
            by_mapping,
            work(Files(a="x", b=["y"]), Files(table="t", csv="c")),
            {"inputs": {"a": "x", "b": ["y"]}, "outputs": {"table": "t", "csv": "c"}},
        ),
        (by_list, work(Files("x", "y"), Files("o")), {"inputs": ["x", "y"], "output": "o"}),
    ],
)
def test_files_are_passed_by_name(function, job, expected):
    assert arguments(function, job) == expected


def write(name, output):
    Path(output).write_text(name)
    Path(output).with_name("beside").write_text(name)


def test_a_job_runs_its_step_and_records_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = work(Files(), Files("results/s/m/a.txt"), name="Anna")
    job.params |= {"code": "x:1"}
    job.params["step"] = {"run": f"{__name__}:write", "network": False, "beside": ["beside", "no"]}
    Path("results/s/m").mkdir(parents=True)
    run_step(job)
    record = json.loads(Path("results/s/records/m/a.txt.json").read_text())
    assert list(record["outputs"]) == ["m/a.txt", "m/beside"]
    assert (record["settings"], record["code"]) == ({"name": "Anna"}, "x:1")
