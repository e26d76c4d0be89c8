"""A SLURM of one node on this machine's loopback address, started and stopped by tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FOLDER = Path("/etc/slurm")
"""Where SLURM looks for its configuration; inside jobs no other place is found."""
STATE = Path("/run/keepset-slurm")
MARK = "# of keepset's tests; removed when they end"

_CONF = """{mark}
ClusterName=keepset
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SlurmdParameters=config_overrides
MinJobAge=7200
MessageTimeout=60
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=240 State=UP
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
"""


@dataclass(frozen=True)
class Job:
    """What SLURM says about a job."""

    number: str
    state: str
    memory: str
    comment: str


class Slurm:
    """Use as a context; `with Slurm() as slurm`."""

    def __enter__(self) -> Self:
        conf = FOLDER / "slurm.conf"
        if conf.exists() and MARK not in conf.read_text():
            raise RuntimeError(f"{conf} is there: this machine has a SLURM of its own")
        shutil.rmtree(STATE, ignore_errors=True)
        (STATE / "state").mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        conf.write_text(_CONF.format(mark=MARK, host=host, state=STATE))
        (FOLDER / "gres.conf").write_text(f"{MARK}\nName=gpu File=/dev/null\n")
        self._own_munge = not Path("/run/munge/munge.socket.2").exists()
        try:
            if self._own_munge:
                Path("/run/munge").mkdir(exist_ok=True)
                shutil.chown("/run/munge", "munge", "munge")
                _run("runuser", "-u", "munge", "--", "/usr/sbin/munged")
            _run("/usr/sbin/slurmctld")
            _run("/usr/sbin/slurmd", "-N", host)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user", "root"], capture_output=True, check=False, timeout=60)
        for daemon in ("slurmd", "slurmctld"):
            _stop(STATE / f"{daemon}.pid")
        if self._own_munge:
            _stop(Path("/run/munge/munged.pid"))
        for name in ("slurm.conf", "gres.conf"):
            (FOLDER / name).unlink(missing_ok=True)
        shutil.rmtree(STATE, ignore_errors=True)

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + 120
        while "idle" not in (said := _run("sinfo", "-h", "-o", "%T", check=False)):
            if time.monotonic() > end:
                log = (STATE / "slurmctld.log").read_text()[-2000:]
                raise RuntimeError(f"the node is not idle but {said!r}\n{log}")
            time.sleep(0.5)

    def jobs(self) -> list[Job]:
        """Every job since the start, ended ones too."""
        found = []
        for line in _run("scontrol", "-o", "show", "jobs").splitlines():
            fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
            if "JobId" in fields:
                memory = fields.get("MinMemoryNode") or fields.get("MinMemoryCPU", "")
                text = fields.get("Comment", fields.get("JobName", ""))
                found.append(Job(fields["JobId"], fields["JobState"], memory, text))
        return found

    def kill(self, job: Job) -> None:
        """SIGKILL to every process of a job, as the kernel does when memory runs out."""
        _run("scancel", "--full", "--signal=KILL", job.number)


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _stop(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, 15)
    except (OSError, ValueError):
        return
    for _ in range(100):
        if _ended(pid):
            return
        time.sleep(0.1)
    os.kill(pid, 9)


def _ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody takes away."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
