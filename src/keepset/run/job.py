"""What every job sets up: log, threads, memory, and errors as one readable message."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from keepset.errors import ConfigError, KeepsetError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def _keep_freed_memory() -> None:
    """Make glibc reuse large freed buffers instead of returning them to the system.

    Every layer allocates its activations; without this a forward pass spends a tenth of its time
    on page faults. With another C library this does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def switch_hub_off() -> None:
    """Stop this process and its later children from using the model hub.

    The libraries read the environment when they are imported, so imported ones are set directly.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if module := sys.modules.get(name):
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@contextmanager
def job(log: str | Path, threads: int, network: bool = False) -> Iterator[None]:
    """Set up a job, run the body, and log how it ends.

    A `KeepsetError` or a full disk ends the process with one message on standard error and exit
    status 1; any other exception is a bug and keeps its traceback.

    Args:
        log: The log file: every setting with its rate, warnings, and tracebacks.
        threads: CPU threads.
        network: Whether the job may use the model hub. Jobs that prepare models and texts may;
            all others run on compute nodes, which often have no network.
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
    """Use `threads` CPU threads in torch, if torch is loaded; None changes nothing.

    Raises:
        ConfigError: `threads` is less than 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: {threads} is too few; give at least 1")
    torch = sys.modules.get("torch")
    if torch is not None and threads is not None:
        torch.set_num_threads(threads)
