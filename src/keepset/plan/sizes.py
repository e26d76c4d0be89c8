"""How large the models of a study are, from a checkpoint's config.json or a table; without torch.

The workflow asks at every start, so nothing here takes time. Families whose record in
`keepset.sites.families` has no formula are for `keepset.plan.counting`, which builds the model on
the meta device.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from keepset.settings import Config, Model
from keepset.sites.families import FAMILIES
from keepset.sites.size_formulas import Content, Size, mamba_ssm

TABLE = Path(__file__).with_name("sizes.csv")
_BIASES = ("mlp_bias", "use_bias", "add_bias_linear")
"""Keys of a configuration whose biases the formulas do not count."""


@dataclass(frozen=True)
class Known:
    """A model's size, and where it is known from."""

    size: Size
    source: str


def from_config(content: Content) -> Size | None:
    """The size of the model that a config.json describes.

    Args:
        content: Of transformers' config.json, or of the package mamba_ssm's.

    Returns:
        None where the family has no formula, or a key is missing that the formula needs.
    """
    if any(content.get(key) for key in _BIASES):
        return None
    family = FAMILIES.get(content.get("model_type", ""))
    try:
        if "ssm_cfg" in content and "model_type" not in content:
            return mamba_ssm(content)
        return family.size(content) if family is not None and family.size is not None else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


@cache
def table() -> dict[str, Size]:
    """Hub id -> size, of the models of config/paper.yaml."""
    types = {field.name: field.type for field in fields(Size)}
    sizes = {}
    with TABLE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            values: dict[str, Any] = {
                name: row[name] == "true" if types[name] == "bool" else int(row[name])
                for name in types
            }
            sizes[row["hub"]] = Size(**values)
    return sizes


def config_file(config: Config, name: str, results: Path | None = None) -> Path | None:
    """The config.json of a model, where it is on this machine; None where it is not.

    Args:
        config: The study.
        name: The model's key in `models`.
        results: The folder of the study's results, where converted checkpoints are.
    """
    model = config.all_models()[name]
    converted = results / name / "checkpoint" if results is not None else None
    folders = [converted, _snapshot(model), Path(model.path) if model.path else None]
    files = [folder.expanduser() / "config.json" for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def _snapshot(model: Model) -> Path | None:
    """Where the hub's cache keeps the model's revision."""
    if model.hub is None:
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cached / f"models--{model.hub.replace('/', '--')}"
    revision = model.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    return repository / "snapshots" / commit


def read_content(file: Path) -> dict[str, Any]:
    """The content of a config.json; empty where it is damaged, which preparing the model says."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def known_size(config: Config, name: str, results: Path | None = None) -> Known | None:
    """The size of a configured model, from its config.json or the table; None where unknown.

    The arguments are those of `config_file`.
    """
    file = config_file(config, name, results)
    size = from_config(read_content(file)) if file is not None else None
    if size is not None:
        return Known(size, str(file))
    hub = config.all_models()[name].hub
    return Known(table()[hub], "keepset's table") if hub in table() else None
