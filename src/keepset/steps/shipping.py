"""Trained specimens: compared with their gates, and shipped with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from keepset import models, text
from keepset.errors import ConfigError
from keepset.files import store
from keepset.files.store import PathLike
from keepset.run import provenance
from keepset.settings import Task, Training
from keepset.steps.training import load_rows, load_tokenizer
from keepset.train import gates


def measure_specimens(
    names: Sequence[str],
    checkpoints: Sequence[PathLike],
    tokens: PathLike,
    corpora: Sequence[PathLike],
    training: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Measure trained specimens on held-out text and compare them with the gates.

    Args:
        names: The specimens.
        checkpoints: Their folders.
        tokens: text.safetensors, as `prepare_training` wrote it beside its other files.
        corpora: Tables of `prepare_corpus`, for the prose of recall items.
        training: The `training` section of the configuration.
        output: Where measurements and gates are written, as JSON.
    """
    settings, data = Training.model_validate(training), Path(tokens).parent
    tokenizer = load_tokenizer(data)
    _, rows = load_rows(settings, tokenizer, data)
    tables = {Path(path).stem: pd.read_parquet(path) for path in corpora}
    task = Task(kind="recall", corpora=list(tables), items=480, facts=[1, 2, 4, 8])
    items = text.build_recall("gates", task, tables, settings.seed + 1)
    measured = {}
    for name, folder in zip(names, checkpoints, strict=True):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        measured[name] = gates.measure_specimen(
            model.eval().requires_grad_(False), tokenizer, rows, items
        )
    judged = gates.check_gates(measured)
    content = gates.as_json(measured, judged)
    store.write_json({**content, "provenance": provenance.environment()}, output)
    print(gates.gates_text(judged))


def ship_specimens(training: PathLike, output: PathLike) -> list[Path]:
    """Copy trained specimens in float16, each with a model card, to where studies find them.

    Args:
        training: results/{study}/training, with gates.json.
        output: The folder of specimens.

    Returns:
        The folders written.

    Raises:
        ConfigError: something that a training leaves is missing.
    """
    training = Path(training)
    _check_is_there(training / "gates.json")
    measurements = store.read_json(training / "gates.json")
    for name in measurements["measured"]:
        for part in ("model", "losses.json", "losses.parquet"):
            _check_is_there(training / name / part)
    folders = []
    for name, measured in measurements["measured"].items():
        source, folder = training / name, Path(output) / name
        model = AutoModelForCausalLM.from_pretrained(
            source / "model", dtype=torch.float16, local_files_only=True
        )
        models.save(model, load_tokenizer(training), folder)
        judged = [gate for gate in measurements["gates"] if gate["specimen"] == name]
        card = model_card(name, store.read_json(source / "losses.json"), measured, judged)
        with store.replacing(folder / "README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")
        for kind in ("parquet", "json"):
            with store.replacing(folder / f"losses.{kind}") as temporary:
                shutil.copyfile(source / f"losses.{kind}", temporary)
        folders.append(folder)
    return folders


def _check_is_there(path: Path) -> None:
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; give results/STUDY/training, after `snakemake --cores 2"
            " train_specimens`"
        )


def model_card(
    name: str,
    trained: Mapping[str, Any],
    measured: Mapping[str, Any],
    judged: Sequence[Mapping[str, Any]],
) -> str:
    """The model card of one specimen, in Markdown.

    Args:
        name: The specimen.
        trained: The provenance of its losses.
        measured: Its `gates.Measurement`.
        judged: Its gates.
    """
    missed = [gate["name"] for gate in judged if not gate["passed"]]
    verdict = f"It misses {len(missed)}: {'; '.join(missed)}." if missed else "It passes all."
    recall = ", ".join(f"{n}: {share:.1%}" for n, share in measured["recall"].items())
    zeros = ", ".join(f"{share:.1%}" for share in measured["zeros"].values())
    facts = [
        f"- Architecture: {trained['architecture']}, {measured['n_parameters']:,} parameters;"
        " Hugging Face's, untouched.",
        f"- Data: {trained['data']}.",
        f"- Training: {trained['steps']:,} steps, {trained['tokens']:,} tokens,"
        f" seed {trained['seed']}, {trained['device']}, {trained['dtype'].removeprefix('torch.')}"
        f" autocast, {trained['seconds'] / 60:.0f} minutes.",
        "- Start: near an induction circuit (docs/METHODS.md, section 4); training is free to undo"
        " it."
        if trained["induction"]
        else "- Start: as transformers draws it.",
        f"- Last training loss (text): {trained['text_nll']:.3f} nats per token; held-out"
        f" perplexity {measured['perplexity']:.2f}.",
        f"- Recall by number of facts: {recall}.",
    ]
    if measured["zeros"]:
        facts.append(f"- FFN activations that are exactly zero, by layer: {zeros}.")
    if measured["experts"]:
        shares = [share for layer in measured["experts"].values() for share in layer]
        facts.append(
            f"- Tokens that are routed to an expert: {min(shares):.1%} to {max(shares):.1%}."
        )
    if measured["perplexity_without_ffn"] is not None:
        facts.append(f"- Without its FFN: perplexity {measured['perplexity_without_ffn']:.2f}.")
    if measured["perplexity_without_state"] is not None:
        facts.append(
            f"- Without its recurrent state: perplexity {measured['perplexity_without_state']:.2f},"
            f" recall {measured['recall_without_state']:.1%}."
        )
    rows = [
        f"| {gate['name']} | {gate['value']:.4g} | {gate['bound']} |"
        f" {'pass' if gate['passed'] else '**fail**'} |"
        for gate in judged
    ]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "tags: [specimen, keepset]",
            "---",
            f"# {name}",
            "",
            "A specimen: a small model trained by keepset for its own study, not for use. It is one"
            " of a family that shares tokenizer, data, order of data and schedule. Members of two"
            " architectures differ in more than the part under study: in normalisation, positions,"
            " biases and widths as well. Each was trained once.",
            "",
            *facts,
            "",
            f"Gates on held-out text. {verdict}",
            "",
            "| gate | measured | bound | |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
