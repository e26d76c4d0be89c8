"""Ahead-of-time compilation, and what the host code may and may not do."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import keepset.kernels
from keepset.errors import KernelError
from keepset.kernels import launch
from keepset.kernels.compile import cases, compiled, main

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(keepset.kernels.__path__[0]).glob("triton_*.py"))
LAUNCHED = {
    name for source in SOURCES for name in re.findall(r"\blaunch\(\s*(\w+),", source.read_text())
}


def run(code: str, **environment: str) -> str:
    """Run `code` in a process of its own, in which kernels are not interpreted."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_waits_for_the_device_and_every_kernel_has_a_case() -> None:
    """Tensors without data run through the host code: it cannot look at any."""
    names = set()
    for case in cases():
        with launch.Recording() as recording:
            case.call()
        assert recording.launches, case.operation
        names |= {step.kernel.__name__ for step in recording.launches}
    assert names == LAUNCHED


def test_the_record_of_registers_covers_every_kernel() -> None:
    with (ROOT / "benchmarks/kernel_registers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kernel"] for row in rows} == {name.lstrip("_") for name in LAUNCHED}
    assert {row["triton"] for row in rows} == {launch.TRITON}
    assert all(int(row["registers"]) <= 255 for row in rows)
    pins = (ROOT / "requirements-dev.txt").read_text().split()
    assert f"triton=={launch.TRITON}" in pins


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    code = """
import json
from keepset.kernels.compile import cases, compiled, resources
from keepset.kernels.launch import Recording
binaries = {}
for case in cases():
    if (case.model, case.operation) in (
        ("OPT-2.7B", "up, threshold, 1 rows"), ("Mamba2-1.3B", "state step by index, N = 38")
    ):
        with Recording() as recording:
            case.call()
        last = recording.launches[-1]
        if last.kernel.__name__ not in binaries:
            kernel = compiled(last)
            binaries[last.kernel.__name__] = kernel.asm["ptx"], resources(kernel.asm["cubin"])
print(json.dumps(binaries))
"""
    binaries = json.loads(run(code, TRITON_CACHE_DIR=str(tmp_path)))
    assert set(binaries) == {"_gemv", "_state_step"}
    for ptx, resources in binaries.values():
        assert ".target sm_90" in ptx
        assert resources["registers"] is None or 16 <= resources["registers"] <= 255
        assert resources["stack_bytes"] in (None, 0)

    # A share's sums are stored, all threads meet, the ticket is drawn, all threads meet again, and
    # only then are the other shares' sums read, from the L2 cache.
    ptx = binaries["_gemv"][0]
    kinds = r"st\.global|bar\.sync|atom\.global\.gpu\.acq_rel|ld\.global\.cg"
    brief = re.sub(r"(\S+)( \1)+", r"\1", " ".join(re.findall(kinds, ptx)))
    before, ticket, after = brief.partition("atom.global.gpu.acq_rel")
    assert ticket, brief
    assert before.endswith("st.global bar.sync "), brief
    assert after.startswith(" bar.sync ld.global.cg"), brief
    assert "ld.global.cg" not in before, brief


def test_interpreted_kernels_are_not_compiled() -> None:
    with launch.Recording() as recording:
        next(iter(cases())).call()
    if not torch.cuda.is_available():
        with pytest.raises(KernelError, match="TRITON_INTERPRET"):
            compiled(recording.launches[0])
    with pytest.raises(KernelError, match="no case matches"):
        main(["--match", "no such model"])


def test_a_cpu_tensor_is_refused_where_kernels_are_compiled() -> None:
    code = """
import torch
from keepset.errors import KernelError
from keepset.kernels.triton_topk import window_topk
try:
    window_topk(torch.zeros(1, 4), 2)
except KernelError as error:
    print(error)
"""
    assert "use CUDA tensors, or set TRITON_INTERPRET=1" in run(code)


def test_without_triton_the_library_imports_and_says_what_to_install() -> None:
    code = """
import sys
sys.modules["triton"] = None
import keepset.kernels.dispatch, keepset.kernels.naive, keepset.kernels.weights
from keepset.errors import KernelError
for name in ("ffn", "gemv", "prefill", "state", "topk", "device", "decode"):
    try:
        __import__(f"keepset.kernels.triton_{name}")
    except KernelError as error:
        print(error)
"""
    said = run(code).splitlines()
    assert len(said) == 7
    assert all(f"pip install --no-deps triton=={launch.TRITON}" in line for line in said)
