import json
from types import SimpleNamespace

import pytest

from keepset.errors import RecordError
from keepset.run import record


def work(outputs, inputs=(), rule="evaluate_dense", wildcards=None, **params):
    return SimpleNamespace(
        rule=rule,
        wildcards=wildcards or {},
        input=[str(path) for path in inputs],
        output=[str(path) for path in outputs],
        params=params,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/made/m"
    folder.mkdir(parents=True)
    (folder / "in.json").write_text("in")
    return folder


def test_a_record_holds_hashes_settings_and_code(folder):
    with record.recording(
        work(["results/made/m/a.parquet"], ["results/made/m/in.json"], code="x:1", seeds=(1, 2))
    ):
        (folder / "a.parquet").write_text("a")
        (folder / "a.json").write_text("sidecar")
    found = json.loads((folder.parent / "records/m/a.parquet.json").read_text())
    assert found["code"] == "x:1"
    assert found["settings"] == {"seeds": [1, 2]}
    # The SHA-256 of "a", "in" and "sidecar", from coreutils' sha256sum.
    assert found["outputs"] == {
        "m/a.json": "6c8b4535ccc87f19061c4646189e33d78f01c8b63dc4e3cb2f630b1796ee93b6",
        "m/a.parquet": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    assert found["inputs"] == {
        "m/in.json": "582967534d0f909d196b97f9e6921342777aea87b46fa52df165389db1fb8ccf"
    }


def test_inputs_may_lie_outside_the_study(folder):
    other = folder.parents[2] / "specimens/losses.parquet"
    other.parent.mkdir()
    other.write_text("in")
    for path in ("specimens/losses.parquet", str(other)):
        with record.recording(work(["results/made/m/a"], [path])):
            (folder / "a").write_text("a")
        found = json.loads((folder.parent / "records/m/a.json").read_text())
        assert list(found["inputs"]) == ["../../specimens/losses.parquet"]


def test_equal_jobs_give_equal_records(folder):
    def run():
        with record.recording(work(["results/made/m/a"])):
            (folder / "a").write_text("a")
        return (folder.parent / "records/m/a.json").read_bytes()

    assert run() == run()


def test_folders_are_recorded_file_by_file(folder):
    with record.recording(work(["results/made/m/a"]), ["results/made/m/box", "results/made/no"]):
        (folder / "a").write_text("a")
        (folder / "box/deep").mkdir(parents=True)
        (folder / "box/deep/b").write_text("b")
    found = record.read_record(folder.parent / "records/m/a.json")
    assert list(found["outputs"]) == ["m/a", "m/box/deep/b"]


def test_a_failed_job_leaves_no_record(folder):
    with pytest.raises(ZeroDivisionError), record.recording(work(["results/made/m/a"])):
        raise ZeroDivisionError
    assert not (folder.parent / "records").exists()


def test_results_elsewhere_are_refused():
    for path in ("a.parquet", "/results/made/a.parquet"):
        with pytest.raises(RecordError, match=r"inside results/<study>/"):
            record.study_folder(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"inputs": 1, "outputs": {}}'])
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RecordError, match="not a record"):
        record.read_record(tmp_path / "r.json")
