"""The runs of a result table, by the setting that each was made under.

The table is read once, since rules ask for hundreds of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keepset.analyse import significance
from keepset.errors import KeepsetError

Setting = Mapping[str, Any]
Key = tuple[Any, ...]
Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]

DENSE: Key = ("dense",)


class Run(NamedTuple):
    """What one setting gave: values by block or item, in order; the mean over seeds."""

    items: NDArray[np.int64]
    values: Arrays


class Shared(NamedTuple):
    """Runs on the same blocks of text."""

    nll: Floats
    """(runs, blocks) summed nats."""
    n_tokens: Floats
    """(blocks,) predicted tokens."""
    document: NDArray[np.int64]
    """(blocks,) the document that each block is from."""


def ffn(method: str, score: str, sparsity: float, **window: str) -> Setting:
    """A setting of the feed-forward site; `window` and `choice` where it is windowed."""
    return {"site": "ffn", "method": method, "score": score, "sparsity": sparsity, **window}


def state(method: str, score: str, sparsity: float, access: str = "both") -> Setting:
    """A setting of the recurrent state."""
    setting = {"site": "state", "method": method, "score": score, "sparsity": sparsity}
    return {**setting, "access": access}


def expert(method: str, score: str, sparsity: float) -> Setting:
    """A setting of the routed experts."""
    return {"site": "expert", "method": method, "score": score, "sparsity": sparsity}


def inputs(method: str, score: str, sparsity: float) -> Setting:
    """A setting of the inputs of all other linear maps."""
    return {"site": "input", "method": method, "score": score, "sparsity": sparsity}


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
        KeepsetError: a column is missing, or a block or item appears twice in one run, or not in
            every seed.
    """
    if not len(table):
        return {}
    if missing := [column for column in columns if column not in table]:
        raise KeepsetError(f"a table of results lacks {', '.join(missing)}; evaluate it again")
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


def share_blocks(runs: Sequence[Run], names: str) -> Shared:
    """Put runs on the blocks that all of them have.

    Rules that cost little may have been run on more text than others, so one run's blocks may be
    the first of another's.

    Args:
        runs: With the values nll, n_tokens and document.
        names: What a message calls them.

    Raises:
        KeepsetError: the blocks of one are no part of those of another, or are of other text, or
            a value is not finite.
    """
    items = min((run.items for run in runs), key=len)
    if not len(items) or not all(np.isin(items, run.items).all() for run in runs):
        raise KeepsetError(f"{names} have not the same blocks; evaluate both again")
    places = [np.searchsorted(run.items, items) for run in runs]
    nll, n_tokens, document = (
        np.stack([run.values[name][place] for run, place in zip(runs, places, strict=True)])
        for name in ("nll", "n_tokens", "document")
    )
    if (n_tokens != n_tokens[0]).any() or (document != document[0]).any():
        raise KeepsetError(f"{names} have blocks of other text; evaluate both again")
    if not np.isfinite(nll).all():
        raise KeepsetError(f"{names}: nll is not finite; run the model in float32")
    return Shared(nll, n_tokens[0], document[0].astype(np.int64))
