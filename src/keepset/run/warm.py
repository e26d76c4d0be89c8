"""Imports paid once: a process that has the libraries loaded, and forks for every job.

A job that runs a model imports torch and transformers first, which takes seconds of CPU, and a
study has a hundred such jobs. `WarmStart` starts one process that imports what every step needs,
and lets `run_step` hand its job to a fork of it. Each job is still a process of its own, with its
own log, memory and exit status; it ends when the process that asked for it is killed, and the other
way round.

Only jobs of the same Python on the same machine ask for it. All others, such as those that a
scheduler sends to another node, or that run in a conda environment, import for themselves, and so
does every job where nothing is forked (see `can_fork`).
"""

from __future__ import annotations

import importlib
import os
import pickle
import pkgutil
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from keepset.errors import KeepsetError

ADDRESS = "KEEPSET_WARM_START"
"""The environment variable that tells jobs where to ask, and for which Python."""

_SOURCE = str(Path(__file__).parents[2])
# What numpy and torch read when they are loaded; `keepset.run.job` gives torch its threads.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What is imported when a model, or a kernel, is first used.
_LATE = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    *(f"keepset.kernels.numba_{kernels}" for kernels in ("ffn", "loss", "scan")),
)
_KILLED = 128  # plus the signal: what a shell says of a process that was killed
_ACCEPTED = b"+"


def can_fork(device: str) -> bool:
    """Whether jobs may be forks of one process: on Linux, where no GPU is used.

    A GPU's driver does not survive a fork, and elsewhere system libraries do not.
    """
    return sys.platform == "linux" and device == "cpu"


class WarmStart:
    """Keeps the process, for jobs that inherit this process's environment.

    It ends with `stop`, or when this process ends in any way, after the last of its jobs.
    """

    def __init__(self) -> None:
        name = secrets.token_hex(16)
        paths = os.pathsep.join(filter(None, [_SOURCE, os.environ.get("PYTHONPATH")]))
        # Bound here: who asks before the process is there waits for it.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(_socket_name(name))
            listener.listen(64)
            handle = listener.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "keepset.run.warm", str(handle)],
                stdin=subprocess.PIPE,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": paths},
                pass_fds=[handle],
            )
        os.environ[ADDRESS] = _address(name)

    def stop(self) -> None:
        """Take no more jobs."""
        os.environ.pop(ADDRESS, None)
        if self._process.stdin is not None:
            self._process.stdin.close()


def _address(name: str) -> str:
    return os.pathsep.join([name, sys.prefix, _SOURCE])


def _socket_name(name: str) -> str:
    return f"\0keepset-{name}"  # of Linux's own name space: no file stays behind


def hand_over(function: str, argument: Any) -> int | None:
    """Let a fork of the warm process call a function, and wait for it.

    The fork gets this process's folder, environment, standard output and standard error.

    Args:
        function: "module:name". It is called with `argument`, and with the seconds of CPU that the
            warm process spent before its first fork; 0 in all forks but that one.
        argument: Picklable.

    Returns:
        The exit status, 128 + n where signal n has ended it; None if nobody took the job.
    """
    name, *_ = address = os.environ.get(ADDRESS, "").split(os.pathsep)
    if address != _address(name).split(os.pathsep):
        return None
    request = pickle.dumps((os.getcwd(), dict(os.environ), function, argument))
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_socket_name(name))
            size = len(request).to_bytes(8, "little")
            socket.send_fds(connection, [size], [1, 2])
            connection.sendall(request)
            if connection.recv(1) != _ACCEPTED:
                return None
        except OSError:
            return None
        status = connection.recv(1)
    # It is gone, and with it what it knew of the job.
    return status[0] if status else _KILLED + signal.SIGKILL


def serve(listener: socket.socket, prepare: Callable[[], object]) -> None:
    """Take jobs until standard input ends, and the last job after it.

    `prepare` is called when the first job comes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Snakemake decides when it ends
    _Server(listener, prepare).run()


class _Server:
    """Forks for every connection, and tells it how the fork ended."""

    def __init__(self, listener: socket.socket, prepare: Callable[[], object]) -> None:
        self._listener, self._prepare = listener, prepare
        self._waiting: dict[int, socket.socket] = {}  # process -> who waits for it
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._unpaid_s: float | None = None

    def run(self) -> None:
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._close)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while self._waiting or self._listener.fileno() >= 0:
            for key, _ in self._selector.select():
                key.data()

    def _close(self) -> None:
        self._selector.unregister(sys.stdin)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        if self._listener.fileno() < 0:
            return
        connection, _ = self._listener.accept()
        if _owner(connection) != os.getuid():
            connection.close()
            return
        if self._unpaid_s is None:
            self._prepare()
            self._unpaid_s = time.process_time()
        request = _receive(connection)
        if request is None:
            connection.close()
            return
        process = os.fork()
        if not process:
            self._selector.close()
            for end in (self._listener, connection, *self._waiting.values()):
                end.close()
            _work(*request, self._unpaid_s)
        self._unpaid_s = 0.0
        for output in request[1]:
            os.close(output)
        self._waiting[process] = connection

        def killed() -> None:  # nothing more is sent: it can only be the end of who waits
            if process in self._waiting:
                os.kill(process, signal.SIGKILL)
                self._selector.unregister(connection)

        self._selector.register(connection, selectors.EVENT_READ, killed)
        with suppress(OSError):
            connection.sendall(_ACCEPTED)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        for process in list(self._waiting):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                connection = self._waiting.pop(process)
                with suppress(KeyError):
                    self._selector.unregister(connection)
                with suppress(OSError):
                    connection.sendall(bytes([code if code >= 0 else _KILLED - code]))
                connection.close()


def _owner(connection: socket.socket) -> int:
    """The user that runs the process at the other end."""
    form = "3i"  # struct ucred: process, user, group
    size = struct.calcsize(form)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack(form, credentials)[1])


def _receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """A request, and the standard output and error of who sent it; None if he has ended."""
    with suppress(OSError):
        header, outputs, _, _ = socket.recv_fds(connection, 8, 2)
        size, request = int.from_bytes(header, "little"), bytearray()
        while len(request) < size and (part := connection.recv(size - len(request))):
            request += part
        if outputs and len(request) == size:
            return bytes(request), list(outputs)
        for output in outputs:
            os.close(output)
    return None


def _work(request: bytes, outputs: list[int], shared_s: float) -> NoReturn:
    """Be the job's process, to its end; `shared_s` is the second argument of its function."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for place, source in enumerate((nothing, *outputs)):
            os.dup2(source, place)
            os.close(source)
        folder, environment, function, argument = pickle.loads(request)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        module, _, name = function.partition(":")
        getattr(importlib.import_module(module), name)(argument, shared_s)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        # Not sys.exit: what the server registered for its own end is not this process's.
        os._exit(status)


def _import_steps() -> None:
    """Import every step with all that it needs."""
    package = importlib.import_module("keepset.steps")
    names = [module.name for module in pkgutil.iter_modules(package.__path__, "keepset.steps.")]
    for name in (*names, *_LATE):
        # A package that is not installed here is an error of the jobs that need it, not of others.
        with suppress(ImportError, KeepsetError):
            importlib.import_module(name)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), _import_steps)
