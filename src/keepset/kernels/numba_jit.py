"""What every numba kernel shares: the library, and how a function is compiled.

Kernels are loops over numpy arrays, on one thread of a CPU. The compiled code is kept on disk, so
that a machine compiles it once: beside the module (`__pycache__`), or in the user's cache where
that cannot be written, or where NUMBA_CACHE_DIR says. It is made again when the module's own text
or the CPU changes. What a kernel calls must therefore be in its module: a change elsewhere would
not be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from keepset.errors import KernelError

NUMBA = "0.68.1"
"""The version that requirements.txt pins."""

try:
    import numba
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
except ImportError as error:
    raise KernelError(
        f"this path needs numba: pip install numba=={NUMBA} ({error}), or choose the torch path"
    ) from error

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel) -> Kernel:
    """Compile a kernel at its first call; sums are taken in the order that is written.

    A division by zero gives what numpy gives. Other Python threads may run meanwhile.
    """
    return _compiled(kernel, fastmath=False)


def vectorised(kernel: Kernel) -> Kernel:
    """Compile a kernel whose sums may be taken in any order, as torch's are; NaN stays NaN.

    The order depends on the CPU, not on the run: equal inputs give equal bits.
    """
    return _compiled(kernel, fastmath={"contract", "nsz", "reassoc"})


def _compiled(kernel: Kernel, fastmath: bool | set[str]) -> Kernel:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        result: Kernel = numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # nowhere to write: each process compiles for itself
        result = numba.njit(**options)(kernel)
    return result


@intrinsic
def fetch(_: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask the processor for the memory around array[row, column], which changes no result."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        values = context.make_array(kind)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, kind, values, arguments[1:])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0")
        # To read, to be kept in all caches, data.
        flags = [word(0), word(3), word(1)]
        builder.call(prefetch, [builder.bitcast(pointer, byte), *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate
