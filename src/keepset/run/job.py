"""What every job sets up: its log, its threads, its memory, and errors that read as sentences."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from keepset.errors import KeepsetError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed buffers instead of returning them to the system.

    Activations and logits are allocated anew in every layer; without this a forward pass spends
    a tenth of its time on page faults. Elsewhere than glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def switch_hub_off() -> None:
    """From here on, neither this process nor its children reach for the model hub.

    The libraries read the environment when they are imported, so those that are get told too.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if module := sys.modules.get(name):
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@contextmanager
def job(log: str | Path, threads: int, network: bool = False) -> Iterator[None]:
    """Run a job's work.

    Args:
        log: The log file; gets every setting with its rate, warnings, and tracebacks.
        threads: CPU threads.
        network: Whether it may reach the model hub. Jobs that prepare models and texts may; all
            others run on compute nodes, which often have no network.

    A `KeepsetError` or a full disk ends the process with one message on standard error and exit
    status 1; anything else is a bug and keeps its traceback.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not network:
        switch_hub_off()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("keepset").setLevel(logging.INFO)
    logging.captureWarnings(True)
    _keep_freed_memory()
    limit_threads(threads)
    try:
        yield
    except (KeepsetError, OSError, SafetensorError) as error:
        logging.getLogger("keepset").exception("failed")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BaseException:
        logging.getLogger("keepset").exception("failed")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def limit_threads(threads: int | None) -> None:
    """Use `threads` CPU threads in torch, if torch is loaded; None leaves it as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and threads is not None:
        torch.set_num_threads(threads)
