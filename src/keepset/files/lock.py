"""Locks on open files: the system drops them when a process ends, in a crash too."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None
"""Whether this system has them."""


def lock(handle: int) -> bool:
    """Take the exclusive lock; False if another process has one, or locks are not supported."""
    return LOCKS and _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def taken(handle: int) -> bool:
    """Whether another process has a lock; take the exclusive one if not, where there are locks."""
    try:
        if LOCKS:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # the file system does not support locks
    return False


def share(handle: int) -> bool:
    """Wait for a shared lock; False if the file system does not support locks."""
    return LOCKS and _flock(handle, fcntl.LOCK_SH)


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except OSError:
        return False
    return True
