"""Read and join result tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from keepset.files import store
from keepset.files.store import PathLike


def stack(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The tables, one below the other; an empty one where there are none."""
    parts = list(tables)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_tables(paths: Iterable[PathLike]) -> pd.DataFrame:
    """What the files hold, one below the other."""
    return stack(map(pd.read_parquet, paths))


def join_tables(inputs: Sequence[PathLike], output: PathLike) -> None:
    """Put tables of one kind together, with the provenance of each."""
    sidecars = {Path(path).name: store.read_json(store.sidecar(path)) for path in inputs}
    store.write_table(read_tables(inputs), output, sidecars)
