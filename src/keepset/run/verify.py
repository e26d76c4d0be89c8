"""Which files of a study are stale, missing, foreign or altered, judged by its jobs' records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from keepset.errors import ConfigError, RecordError
from keepset.run import provenance, record
from keepset.settings import Config, outputs, steps

Status = Literal["altered", "missing", "stale", "foreign"]

_ASIDE = (
    "logs/*",
    "benchmarks/*",
    f"{record.FOLDER}/*",
    "training/*/checkpoint.pt*",
    "*/.snakemake_timestamp",
    "report.zip",
)
"""What is no result: logs, timings, records, the state that a training resumes from, what
Snakemake leaves in folders that are outputs, and its report."""

Record = dict[str, Any]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong with one file.

    Attributes:
        path: Relative to the study's folder.
        status: altered: its contents are not those that its job wrote. missing: a job wrote it, or
            the configuration asks for it, and it is not there. stale: today's code, settings or
            inputs would be others. foreign: no job of this study wrote it.
        reason: A sentence.
    """

    path: str
    status: Status
    reason: str


@dataclass
class _Study:
    """The records of a study and the files it has."""

    folder: Path
    config: Config | None
    records: list[Record] = field(default_factory=list)
    owners: dict[str, Record] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """File -> SHA-256, of all that is no log, timing or record."""
    findings: set[Finding] = field(default_factory=set)

    def add(self, path: str, status: Status, reason: str) -> None:
        self.findings.add(Finding(path, status, reason))


def verify(folder: str | Path, config: Config | None = None) -> tuple[list[Finding], int]:
    """Judge every file of a study.

    A file is stale if the code behind it, a setting or an input has changed since it was made, or
    if it rests on a stale file. Layout, comments and docstrings of code do not count.

    Args:
        folder: `results/<study>`.
        config: The study's configuration; without one, settings are not compared, and results
            that were never made are not missed.

    Returns:
        The findings, sorted by path, and the number of files that jobs wrote.

    Raises:
        RecordError: the folder is not there, or holds no records.
    """
    study = _read(Path(folder), config)
    for content in study.records:
        _compare_outputs(study, content)
        for reason in _changes(study, content):
            for path in content["outputs"]:
                study.add(path, "stale", reason)
    _find_foreign(study)
    _find_unmade(study)
    _spread(study)
    return sorted(study.findings), len(study.owners)


def names_of(folder: Path) -> list[str]:
    """The names that the study in `folder` goes by: those in its records, and the folder's own.

    The folder may be a link, or a copy under another name.

    Raises:
        RecordError: the folder is not there.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give results/<study>")
    recorded = [content["study"] for content in _records(folder)[0] if content["study"]]
    return list(dict.fromkeys([*recorded, folder.absolute().name, folder.resolve().name]))


def _records(folder: Path) -> tuple[list[Record], list[Path]]:
    """The records in a study's folder, and the files there that are none."""
    good, bad = [], []
    for path in record.files_below(folder / record.FOLDER):
        if path.suffix != ".json":
            continue
        try:
            good.append(record.read_record(path))
        except RecordError:
            bad.append(path)
    return good, bad


def _read(folder: Path, config: Config | None) -> _Study:
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give results/<study>")
    study = _Study(folder, config)
    study.records, damaged = _records(folder)
    for path in damaged:
        name = path.relative_to(folder).as_posix()
        study.add(name, "altered", "not a record; run the job that it belongs to again")
    if not study.records:
        raise RecordError(
            f"{folder}: holds no records of jobs; is it a study's folder, results/<study>, made by"
            " this version?"
        )
    for content in study.records:
        study.owners.update(dict.fromkeys(content["outputs"], content))
    for path in record.files_below(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in _ASIDE):
            study.hashes[name] = record.sha256(path)
    return study


def _compare_outputs(study: _Study, content: Record) -> None:
    for path, written in content["outputs"].items():
        if path not in study.hashes:
            study.add(path, "missing", f"{content['rule']} made it, and it is gone")
        elif study.hashes[path] != written:
            study.add(path, "altered", f"not as {content['rule']} wrote it")


def _hash_now(study: _Study, content: Record, path: str) -> str | None:
    """The hash of what a job read, as it is now; as it was written, where it is gone."""
    if path.startswith("../"):
        # First as the job spelled it, then from where the folder is, if it is a link.
        for outside in (Path(os.path.normpath(study.folder / path)), study.folder / path):
            if outside.is_file():
                return record.sha256(outside)
    return study.hashes.get(path) or study.owners.get(path, content)["outputs"].get(path)


def _changes(study: _Study, content: Record) -> Iterator[str]:
    """Why a job would now give something else."""
    if reason := _changed_code(content["code"]):
        yield reason
    for path, read in content["inputs"].items():
        now = _hash_now(study, content, path)
        if now is not None and now != read:
            yield f"made from another {path} than the one that is there"
    if study.config is not None:
        yield from _changed_settings(study.config, content)


def _changed_code(code: str | None) -> str | None:
    if code is None:
        return None
    module = code.partition(":")[0]
    try:
        now = provenance.code_hash(module)
    except ValueError:
        return f"the code that made it, {module}, is no longer there"
    return None if now == code else f"the code of {module} has changed"


def _changed_settings(config: Config, content: Record) -> Iterator[str]:
    rule, wildcards = content["rule"], content["wildcards"]
    if unknown_names(config, wildcards):
        return  # foreign, not stale
    step = steps.all_steps().get(rule)
    if step is None:
        return
    try:
        settings = record.plain(step.given(config, wildcards))
    except ConfigError as error:
        yield f"the configuration does not ask for it: {error}"
        return
    if changed := _differences(content["settings"], settings):
        yield f"settings have changed: {', '.join(changed)}"
    joined = outputs.joined(config, rule, wildcards)
    if joined is not None and joined != set(content["inputs"]):
        others = sorted(joined ^ set(content["inputs"]))
        yield f"made from other tables: {', '.join(others[:3])}{' …' if others[3:] else ''}"


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The keys, dotted, of the deepest values that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        return [
            different
            for name in names
            for different in _differences(old.get(name), new.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if old == new else [key]


def unknown_names(config: Config, wildcards: Mapping[str, str]) -> list[str]:
    """The models, corpora, tasks and specimens of a job that the configuration does not have."""
    known = {
        "model": set(config.all_models()),
        "corpus": set(config.corpora),
        "task": set(config.tasks),
        "specimen": set(config.training.specimens) if config.training else set(),
    }
    return [
        f"{kind} {wildcards[kind]}"
        for kind, names in known.items()
        if kind in wildcards and wildcards[kind] not in names
    ]


def _find_foreign(study: _Study) -> None:
    for path in study.hashes:
        owner = study.owners.get(path)
        if owner is None:
            name = Path(path).name
            left = name.startswith(".")
            reason = "a killed job left it; delete it" if left else "no job of this study wrote it"
            study.add(path, "foreign", reason)
        elif study.config and (unknown := unknown_names(study.config, owner["wildcards"])):
            study.add(path, "foreign", f"{', '.join(unknown)} is not in the configuration")


def _find_unmade(study: _Study) -> None:
    if study.config is None:
        return
    for path in outputs.tables(study.config):
        if path not in study.owners and path not in study.hashes:
            study.add(path, "missing", "the configuration asks for it; run the workflow")


def _spread(study: _Study) -> None:
    """What rests on a stale file is stale."""
    stale = {finding.path for finding in study.findings if finding.status == "stale"}
    grew = True
    while grew:
        grew = False
        for content in study.records:
            below = sorted(stale & set(content["inputs"]))
            fresh = set(content["outputs"]) - stale
            if below and fresh:
                grew = True
                stale |= fresh
                for path in fresh:
                    study.add(path, "stale", f"rests on {below[0]}, which is stale")
