import pandas as pd
import pytest
import torch

from decoding import DEVICE
from keepset.errors import KeepsetError
from keepset.kernels import torch_ffn
from keepset.kernels.selection import TRITON_DOWN, TRITON_FFN, Selection
from keepset.settings import Shape
from keepset.speed import blocks, timing

MACHINE = timing.Machine(torch.device(DEVICE), 1 << 14, 1e9)


CASES = {1: [0.5, 0.9], 3: [0.9]}


def table(cases=CASES, kernels="auto", **shape):
    options = (torch.float32, MACHINE, 0.0, Selection(kernels))
    return pd.DataFrame(list(blocks.time_shape("tiny", Shape(**shape), cases, *options)))


@pytest.mark.parametrize("gated", [False, True])
def test_every_case_has_its_rows(gated):
    rows = table(kernels="torch", d_model=24, n_units=40, gated=gated)
    counts = rows.groupby(["batch", "sparsity", "level"])["kernel"].count()
    assert counts.to_dict() == {
        (batch, sparsity, level): len(torch_ffn.DOWN_PATHS) if level == "kernel" else 2
        for batch, sparsity in ((1, 0.5), (1, 0.9), (3, 0.9))
        for level in ("ffn", "kernel")
    }
    assert (rows[["ms_p20", "dense_ms_p50", "speedup_p50"]] > 0).all(axis=None)


def test_kernels_that_run_are_timed_too():
    cases = {1: [0.9], 3: [0.9]}
    rows = table(cases, "triton", d_model=24, n_units=40, gated=True)
    counts = rows.groupby(["batch", "sparsity", "level"])["path"].apply(set)
    down, ffn = {*torch_ffn.DOWN_PATHS, TRITON_DOWN}, {TRITON_DOWN, "held", TRITON_FFN}
    for batch in cases:
        assert counts[batch, 0.9, "kernel"] == down
        assert counts[batch, 0.9, "ffn"] == ffn
    both = rows.query(f"path == '{TRITON_FFN}' and batch == 1")
    assert dict(zip(both["kernel"], both["bytes"], strict=True)) == {
        "ffn dynamic": (2 * 40 + 4) * 24 * 4,
        "ffn known": 3 * 4 * 24 * 4,
    }


def test_bytes_are_those_of_kept_rows():
    rows = table(d_model=24, n_units=40, gated=True).query("batch == 1 and sparsity == 0.9")
    row = 24 * 4
    by_kernel = rows.groupby("kernel")["bytes"].first()
    assert by_kernel.to_dict() == {
        "down": 4 * row,
        "ffn dynamic": (2 * 40 + 4) * row,
        "ffn known": 3 * 4 * row,
    }
    assert rows["roofline_ms"].eq(1e3 * rows["bytes"] / MACHINE.bandwidth).all()


def test_a_path_that_drops_a_unit_is_caught(monkeypatch):
    def dropping(h, kept, rows, bias):
        return torch_ffn.bag(h, kept[:-1], rows, bias)

    monkeypatch.setitem(torch_ffn.DOWN_PATHS, "bag", dropping)
    with pytest.raises(KeepsetError, match="down, path bag: its output is off"):
        table(d_model=24, n_units=40)
