from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pandas as pd
import pytest

from keepset.errors import TextError
from keepset.settings import TextSource
from keepset.text.sources import read_documents

LABEL = "corpora.made.evaluation"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset in the form in which the hub keeps it: a card and Parquet files."""
    made = tmp_path / "made"
    (made / "raw").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: raw-v1\n  data_files:\n"
    for split in ("train", "test"):
        rows = [f"{split} {number}" for number in range(4)]
        pd.DataFrame({"text": rows, "id": range(4)}).to_parquet(made / "raw" / f"{split}.parquet")
        card += f"  - split: {split}\n    path: raw/{split}.parquet\n"
    (made / "README.md").write_text(f"{card}---\n")
    return made


def _source(hub: Path | str, **keys: object) -> TextSource:
    return TextSource.model_validate({"hub": str(hub), "split": "test", **keys})


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_configuration_and_split(folder: Path, streaming: bool) -> None:
    source = _source(folder, config="raw-v1", streaming=streaming, max_documents=3)
    assert read_documents(source, LABEL) == ["test 0", "test 1", "test 2"]


def test_a_stream_is_not_read_past_max_documents(tmp_path: Path) -> None:
    data = tmp_path / "made" / "data"
    data.mkdir(parents=True)
    rows = [{"text": "a"}, {"text": "b"}, {"text": 3}]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_documents(_source(tmp_path / "made", streaming=True, max_documents=2), LABEL)
    assert read == ["a", "b"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"field": "body"}, r"no field 'body'; the fields are: text, id"),
        ({"field": "id"}, r"field 'id' is not text but int"),
        ({"split": "dev"}, r"dev"),
        ({"config": "other"}, r"other"),
    ],
)
def test_what_is_not_in_the_dataset_is_named(
    folder: Path, keys: dict[str, str], message: str, streaming: bool
) -> None:
    source = _source(folder, **{"config": "raw-v1", "streaming": streaming, **keys})
    with pytest.raises(TextError, match=message) as caught:
        read_documents(source, LABEL)
    assert str(caught.value).startswith(f"{LABEL}: {folder}, split {source.split}")


def test_offline_says_how_to_download_before() -> None:
    with pytest.raises(TextError, match=r"load_dataset\('some-org/made', 'raw-v1'\)"):
        read_documents(_source("some-org/made", config="raw-v1"), LABEL)
    with pytest.raises(TextError, match=r"--repo-type dataset some-org/made --local-dir FOLDER"):
        read_documents(_source("some-org/made", streaming=True), LABEL)


def test_a_dataset_downloaded_before_is_read_offline(folder: Path, tmp_path: Path) -> None:
    datasets.load_dataset(str(folder), name="raw-v1")
    cache = tmp_path / "cache"
    shutil.move(cache / "made", cache / "some-org___made")
    assert read_documents(_source("some-org/made", config="raw-v1"), LABEL)[0] == "test 0"


def test_a_script_in_a_dataset_is_never_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "made.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TextError, match="scripts are no longer supported"):
        read_documents(_source(made), LABEL)
    assert not (tmp_path / "ran").exists()
