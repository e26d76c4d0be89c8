"""Whether a process is the only one that works in a folder, even after a crash."""

from __future__ import annotations

import socket
from pathlib import Path

from keepset.files.lock import lock, share


class Presence:
    """Marks a folder as one that this process works in, for as long as the object lives.

    The mark is a shared lock on a file of this machine, so killed processes do not count.

    Attributes:
        alone: True if no other process works in the folder. Processes on other machines are
            invisible, so it is False if another machine has ever worked there, and also where
            the file system does not support locks.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"running.{socket.gethostname()}"
        self._file = path.open("a")
        locked = lock(self._file.fileno())
        self.alone = locked and set(folder.glob("running.*")) == {path}
        share(self._file.fileno())
