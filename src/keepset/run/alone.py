"""Whether a process is the only one that works in a folder, after a crash too."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def alone(folder: str | Path) -> bool:
    """Join those that work in `folder`, until this process ends; True if there is no other.

    A process that was killed does not count. One on another machine cannot be seen from here, so
    where any machine but this one has ever worked in the folder, the answer is False.
    """
    if fcntl is None:
        return False
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = Path(folder) / f"running.{socket.gethostname()}"
    elsewhere = [path for path in Path(folder).glob("running.*") if path != own]
    # Never closed: the lock holds to the end of the process.
    handle = os.open(own, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        only = not elsewhere
    except OSError:
        only = False
    with suppress(OSError):  # a disk without locks: nobody is ever alone
        fcntl.flock(handle, fcntl.LOCK_SH)
    return only
