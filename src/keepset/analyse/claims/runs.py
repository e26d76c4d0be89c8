"""The runs of a result table, by the setting that each was made under.

The table is read once, since rules ask for hundreds of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keepset.analyse import significance
from keepset.errors import KeepsetError

Setting = Mapping[str, Any]
Key = tuple[Any, ...]
Arrays = dict[str, NDArray[Any]]

DENSE: Key = ("dense",)


class Run(NamedTuple):
    """What one setting gave: values by block or item, in order; the mean over seeds."""

    items: NDArray[np.int64]
    values: Arrays


def ffn(method: str, score: str, sparsity: float, **window: str) -> Setting:
    """A setting of the feed-forward site; `window` and `choice` where it is windowed."""
    return {"site": "ffn", "method": method, "score": score, "sparsity": sparsity, **window}


def state(method: str, score: str, sparsity: float, access: str = "both") -> Setting:
    """A setting of the recurrent state."""
    setting = {"site": "state", "method": method, "score": score, "sparsity": sparsity}
    return {**setting, "access": access}


def setting_name(setting: Setting | None) -> str:
    """A setting in words: "static magnitude 90%", "dynamic impact 90% (write)"."""
    if setting is None:
        return "dense"
    name = f"{setting['method']} {setting['score']} {100 * setting['sparsity']:g}%"
    if "window" in setting:
        name += f" W={setting['window']} {setting['choice']}"
    access = setting.get("access", "none")
    return name if access in ("none", "both") else f"{name} ({access})"


def key_of(setting: Setting | None) -> Key:
    """The key of a setting's run; None is dense.

    Windows and choices name a run only where they vary: a static run is held for the corpus.
    """
    if setting is None or setting["method"] == "dense":
        return DENSE
    windowed = setting["method"] == "windowed"
    return (
        setting["site"],
        setting["method"],
        setting["score"],
        round(float(setting["sparsity"]), 6),
        setting.get("access", "none"),
        setting["window"] if windowed else None,
        setting["choice"] if windowed else None,
    )


def find_runs(
    table: pd.DataFrame, text: str, item: str, columns: list[str]
) -> dict[tuple[str, str], dict[Key, Run]]:
    """(model, text) -> key -> run.

    Args:
        table: Perplexity or capability.
        text: The column of the corpus or task.
        item: The column of the block or item.
        columns: What to keep of each.

    Raises:
        KeepsetError: a block or item appears twice in one run, or not in every seed.
    """
    if not len(table):
        return {}
    table = significance.with_access(table)
    names = ["model", text, "site", *significance.SETTING]
    group = table.groupby(names, sort=False).ngroup().to_numpy()
    order = np.argsort(group, kind="stable")
    arrays = {name: table[name].to_numpy() for name in (item, "seed", *columns)}
    runs_by_text: dict[tuple[str, str], dict[Key, Run]] = {}
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    heads = table[names].iloc[[rows[0] for rows in groups]].itertuples(index=False)
    for rows, values in zip(groups, heads, strict=True):
        head: dict[str, Any] = dict(zip(names, values, strict=True))
        key = key_of(head)
        runs = runs_by_text.setdefault((str(head["model"]), str(head[text])), {})
        name = " ".join(str(head[column]) for column in names)
        if key in runs and key != DENSE:
            raise KeepsetError(f"{name}: more than one run answers to this; evaluate it again")
        # One dense run serves every site: where it is repeated, the first is used.
        runs.setdefault(key, _pool({k: v[rows] for k, v in arrays.items()}, item, name))
    return runs_by_text


def _pool(arrays: Arrays, item: str, name: str) -> Run:
    items, inverse, counts = np.unique(arrays.pop(item), return_inverse=True, return_counts=True)
    seeds = arrays.pop("seed")
    n_seeds = len(np.unique(seeds))
    # As many rows as items times seeds, none twice: then every seed has every item.
    pairs = len(set(zip(inverse.tolist(), seeds.tolist(), strict=True)))
    if pairs != len(seeds) or (counts != n_seeds).any():
        raise KeepsetError(f"{name}: a {item} is missing or appears twice; evaluate it again")
    values = {
        column: np.bincount(inverse, weights=value.astype(np.float64)) / counts
        for column, value in arrays.items()
    }
    return Run(items.astype(np.int64), values)
