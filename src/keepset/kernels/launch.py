"""What every Triton kernel's host code shares: the library, checks, workspaces and the launch.

Importing this module, or any `triton_*` module, needs Triton; `keepset.kernels` itself does not.
Kernels run on CUDA tensors, or, where TRITON_INTERPRET=1 was set before this module was imported,
on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from keepset.errors import KernelError
from keepset.kernels.weights import FfnWeights

TRITON = "3.9.0"
"""The version that requirements-dev.txt pins."""

try:
    import triton
except ImportError as error:
    raise KernelError(
        f"this path needs Triton: pip install --no-deps triton=={TRITON}"
        " (Linux; the CUDA build of torch brings its own), or choose the torch path"
    ) from error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what it was given, in order, and its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


class Recording(TorchFunctionMode):
    """Collects launches instead of running them; the tensors may be on the meta device.

    So what is compiled ahead of time is what the host code would launch:

        with Recording() as recording:
            sparse_gemv(x, rows, threshold=0.1)
        recording.launches
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in the place of every function of tensors; `launch` is one of them."""
        given = kwargs or {}
        if func is not launch:
            return func(*args, **given)
        kernel, grid, *arguments = args
        sizes = (given.pop("num_warps"), given.pop("num_stages"))
        self.launches.append(Launch(kernel, grid, tuple(arguments), given, *sizes))
        return None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    **constants: Any,
) -> None:
    """Start `kernel` on `grid`; nothing here waits for the device. `Recording` can take it over.

    Raises:
        KernelError: a tensor is on the CPU and the kernel is not interpreted.
    """
    if has_torch_function(arguments):
        sizes = {"num_warps": num_warps, "num_stages": num_stages}
        handle_torch_function(launch, arguments, kernel, grid, *arguments, **sizes, **constants)
        return
    compiled = isinstance(kernel, triton.JITFunction)
    for argument in arguments:
        if compiled and isinstance(argument, Tensor) and not argument.is_cuda:
            raise KernelError(
                f"kernel {kernel.__name__} was given a tensor on {argument.device}: use CUDA"
                " tensors, or set TRITON_INTERPRET=1 before keepset.kernels is imported and"
                " use CPU tensors"
            )
    kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def workspace(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Memory that a kernel fills before anything reads it; its content is undefined."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def check(condition: bool, message: str) -> None:
    """Raise KernelError with `message` unless `condition` holds."""
    if not condition:
        raise KernelError(message)


def check_matrix(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Check shape, dtype, device and that the last dimension is contiguous.

    Rows may be strided, and pointers misaligned: that is handled, at some cost in speed.

    Raises:
        KernelError: names the tensor and what to do.
    """
    check(tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    check(tensor.dtype == like.dtype, f"{name} is {tensor.dtype}, x is {like.dtype}: convert one")
    check(tensor.device == like.device, f"{name} is on {tensor.device}, x on {like.device}")
    check(
        tensor.numel() == 0 or tensor.shape[-1] == 1 or tensor.stride(-1) == 1,
        f"{name} is not contiguous in its last dimension (strides {tensor.stride()}):"
        f" store it with .contiguous()",
    )


def check_vector(name: str, tensor: Tensor | None, length: int, like: Tensor) -> None:
    """Check a bias or a vector of norms: shape (length,), any float dtype, contiguous."""
    if tensor is None:
        return
    check(tuple(tensor.shape) == (length,), f"{name} has shape {tuple(tensor.shape)}, expected"
          f" ({length},)")  # fmt: skip
    check(tensor.is_floating_point(), f"{name} is {tensor.dtype}, expected a float dtype")
    check(tensor.device == like.device, f"{name} is on {tensor.device}, x on {like.device}")
    check(length <= 1 or tensor.stride(0) == 1, f"{name} is not contiguous: use .contiguous()")


def rows_of(x: Tensor, width: int) -> Tensor:
    """x (..., width) as contiguous-in-the-row (rows, width); copied only where it must be.

    Raises:
        KernelError: the width or the dtype does not fit.
    """
    check(x.ndim >= 1 and x.shape[-1] == width, f"x has shape {tuple(x.shape)}, expected"
          f" (..., {width})")  # fmt: skip
    check(x.dtype in DTYPES, f"x is {x.dtype}; kernels take float32, float16 and bfloat16")
    rows = x.reshape(-1, width)
    return rows if width == 1 or rows.stride(-1) == 1 else rows.contiguous()


def check_ffn(x: Tensor, ffn: FfnWeights) -> None:
    """Check that a kernel can read the weights together with `x` (rows, d).

    Raises:
        KernelError: names the tensor and what to do.
    """
    matrices = {"up": ffn.up, "down_t": ffn.down_t, "gate": ffn.gate}
    for name, matrix in matrices.items():
        if matrix is not None:
            check_matrix(name, matrix, (ffn.n, ffn.d), x)
    check_vector("up_bias", ffn.up_bias, ffn.n, x)
    check_vector("gate_bias", ffn.gate_bias, ffn.n, x)
    check_vector("down_bias", ffn.down_bias, ffn.d, x)
