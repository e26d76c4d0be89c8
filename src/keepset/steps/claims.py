"""The ledger of claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset.analyse import claims
from keepset.analyse.claims import Evidence
from keepset.analyse.significance import with_access
from keepset.errors import KeepsetError
from keepset.files import store
from keepset.files.store import PathLike
from keepset.report import ledger
from keepset.run import provenance
from keepset.settings import Statistics
from keepset.steps.tables import read_tables, stack


def judge_claims(
    inputs: Mapping[str, Sequence[PathLike]],
    settings: Mapping[str, Any],
    outputs: Mapping[str, PathLike],
) -> None:
    """Judge every claim on the tables of a study, and write the ledger.

    Args:
        inputs: models (model.json), corpora, perplexity, rounding, capability, correlation,
            ablations, channels and memory: paths of each kind, none where a study has no such
            table.
        settings: study, statistics, tasks (name -> kind, those that count), l1 (the models
            that were trained with a penalty on |h|) and induction (those whose training started
            near a hand-made circuit).
        outputs: csv, cases, tex and html, and the ledger as parquet for its figure.
    """
    evidence = gather(inputs, settings)
    rows, cases = claims.judge(evidence)
    facts = {**provenance.environment(), "settings": dict(settings)}
    store.write_table(rows, outputs["parquet"], facts)
    study = str(settings["study"])
    texts = {
        "csv": rows.to_csv(index=False, lineterminator="\n"),
        "cases": cases.to_csv(index=False, lineterminator="\n"),
        "tex": ledger.latex(rows),
        "html": ledger.page(rows, cases, study),
    }
    for name, content in texts.items():
        with store.replacing(outputs[name]) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")


def gather(inputs: Mapping[str, Sequence[PathLike]], settings: Mapping[str, Any]) -> Evidence:
    """Read the tables that the claims are judged on."""
    infos = [store.read_json(path) for path in inputs["models"]]
    origins = {info["name"]: info["origin"] for info in infos}
    return Evidence(
        models=pd.DataFrame([_traits(info, settings) for info in infos]),
        perplexity=with_access(read_tables(inputs.get("perplexity", ()))),
        rounding=with_access(read_tables(inputs.get("rounding", ()))),
        capability=_of_tasks(
            with_access(read_tables(inputs.get("capability", ()))), settings["tasks"]
        ),
        correlation=read_tables(inputs.get("correlation", ())),
        ablations=read_tables(inputs.get("ablations", ())),
        channels=_read_named(inputs.get("channels", ()), origins),
        memory=_read_named(inputs.get("memory", ()), origins),
        tasks=dict(settings["tasks"]),
        documents=_n_documents(inputs.get("corpora", ()), "evaluation"),
        calibration_documents=_n_documents(inputs.get("corpora", ()), "calibration"),
        statistics=Statistics.model_validate(settings["statistics"]),
    )


def _traits(info: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a model, and of how it was trained where it is a specimen of the study."""
    trained = {fact: info["name"] in settings[fact] for fact in ("l1", "induction")}
    return claims.traits(info, **trained)


def _of_tasks(capability: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """The rows of the tasks that claims are judged on (`_claims` in `keepset.settings.steps`)."""
    return capability[capability["task"].isin(list(tasks))] if len(capability) else capability


def _named(table: pd.DataFrame, path: Path, origins: Mapping[str, str]) -> pd.DataFrame:
    """A table of one model and corpus, .../MODEL/CORPUS/name.parquet, with their names."""
    model, corpus = path.parts[-3:-1]
    return table.assign(model=model, origin=origins[model], corpus=corpus)


def _read_named(paths: Sequence[PathLike], origins: Mapping[str, str]) -> pd.DataFrame:
    return stack(_named(pd.read_parquet(path), Path(path), origins) for path in paths)


def _n_documents(corpora: Sequence[PathLike], split: str) -> dict[str, int]:
    """Corpus -> the documents that text of a split can be taken from."""
    tables = {
        Path(path).stem: pd.read_parquet(path, columns=["split", "document"]) for path in corpora
    }
    return {
        name: table.loc[table["split"] == split, "document"].nunique()
        for name, table in tables.items()
    }


def read_ledger(folder: PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ledger and the cases of a finished study.

    Raises:
        KeepsetError: there is none; the message says how to make it.
    """
    paths = [Path(folder) / name for name in ("claims.csv", "claims_cases.csv")]
    if missing := [path for path in paths if not path.is_file()]:
        raise KeepsetError(
            f"{missing[0]}: no such file; run `snakemake --cores 1 claims` on the study first"
        )
    names = dict.fromkeys(("model", "where"), str)  # a model may be called 1.30
    rows, cases = (
        pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=names) for path in paths
    )
    return rows, cases
