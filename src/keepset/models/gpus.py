"""One GPU for each job, where several jobs share a machine that has several GPUs."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from keepset.files.lock import LOCKS, lock


@cache
def claim(count: int) -> int:
    """The GPU of this process: the first that no other process of keepset has claimed.

    A claim is a lock on a file; it ends when the process ends, for whatever reason. A process
    keeps the GPU of its first claim. With more processes than GPUs, the last ones share.

    Args:
        count: GPUs that this process sees. CUDA_VISIBLE_DEVICES says which these are, and indices
            count within it: processes that see different GPUs do not compete for a lock.

    Returns:
        An index from 0 to count - 1.
    """
    if count < 2 or not LOCKS:
        return 0
    folder = Path(tempfile.gettempdir()) / f"keepset-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for index, name in enumerate(_names(count)):
        handle = os.open(folder / f"{name.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if lock(handle):
            return index  # an open handle holds the lock
        os.close(handle)
    return os.getpid() % count


def _names(count: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return names if len(names) == count else [str(index) for index in range(count)]
