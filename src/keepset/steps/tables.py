"""Join result tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from keepset.files import store

PathLike = str | Path


def join_tables(inputs: Sequence[PathLike], output: PathLike) -> None:
    """Put tables of one kind together, with the provenance of each."""
    table = pd.concat([pd.read_parquet(path) for path in inputs], ignore_index=True)
    sidecars = {Path(path).name: store.read_json(store.sidecar(path)) for path in inputs}
    store.write_table(table, output, sidecars)
