"""One record per job: the hash of each file it wrote, and all that these files follow from.

Records are what `keepset.run.verify` judges results by. They hold no time, so equal runs give equal
records.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from keepset.errors import RecordError
from keepset.files import store
from keepset.run import provenance

FOLDER = "records"
"""Where the records of a study are, inside its folder of results."""


class Work(Protocol):
    """What a workflow engine tells a job about itself; paths are `results/<study>/...`.

    `wildcards` and `params` are mappings; the files have `items()` too, where they have names.
    """

    rule: str
    wildcards: Any
    input: Iterable[str]
    output: Iterable[str]
    params: Any
    log: Sequence[str]
    threads: int


@contextmanager
def recording(work: Work, also: Iterable[str | Path] = ()) -> Iterator[None]:
    """Record a job that succeeds.

    Inputs are hashed before the work begins, outputs after it ended. The parameter `settings` is
    what the job was told, `code` the code that it ran (`provenance.code_hash`).

    Args:
        work: The job.
        also: Files or folders that it writes without naming them as output; they need not exist.
            Sidecars of tables are found without.

    Raises:
        RecordError: an output is not inside `results/<study>/`.
    """
    outputs = [Path(path) for path in work.output]
    root = study_folder(outputs[0])
    inputs = hashes(work.input, root)
    yield
    sidecars = {store.sidecar(path) for path in outputs if path.suffix == ".parquet"}
    unnamed = [path for path in {*sidecars, *map(Path, also)} - set(outputs) if path.exists()]
    content = {
        "study": root.name,
        "rule": work.rule,
        "wildcards": dict(work.wildcards.items()),
        "code": work.params.get("code"),
        "settings": plain(work.params["settings"]),
        "inputs": inputs,
        "outputs": hashes([*outputs, *unnamed], root),
        "environment": provenance.environment(),
    }
    store.write_json(content, record_path(outputs[0]))


def study_folder(path: str | Path) -> Path:
    """`results/<study>` of a result's path.

    Raises:
        RecordError: the path is not of that form.
    """
    parts = Path(path).parts
    if len(parts) < 3 or Path(path).is_absolute():
        raise RecordError(f"{path}: results are files inside results/<study>/")
    return Path(*parts[:2])


def record_path(output: str | Path) -> Path:
    """The record of the job whose first output is `output`."""
    root = study_folder(output)
    relative = Path(output).relative_to(root)
    return root / FOLDER / relative.with_name(f"{relative.name}.json")


def hashes(paths: Iterable[str | Path], root: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path relative to `root`; of a folder, of all files in it.

    Paths outside `root`, such as a shipped specimen's, start with `..`.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += files_below(path) if path.is_dir() else [path]
    digests = {Path(os.path.relpath(file, root)).as_posix(): sha256(file) for file in files}
    return dict(sorted(digests.items()))


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, sorted; subfolders may be links."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent).resolve()
        # A link to a folder above would lead here again.
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]
        files += (Path(parent, name) for name in names)
    return sorted(files)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON, so that two of them can be compared."""
    content: dict[str, Any] = json.loads(json.dumps(dict(settings), sort_keys=True))
    return content


def read_record(path: Path) -> dict[str, Any]:
    """Read one record.

    Raises:
        RecordError: it is not a record.
    """
    try:
        content = store.read_json(path)
        if not isinstance(content["inputs"], dict) or not isinstance(content["outputs"], dict):
            raise TypeError("inputs and outputs are not mappings")
        keys = ("rule", "wildcards", "code", "settings", "inputs", "outputs")
        return {"study": content.get("study"), **{key: content[key] for key in keys}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a record ({error})") from None
