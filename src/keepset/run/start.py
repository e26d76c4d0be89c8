"""How the workflow's script starts a job. It imports little, since every job pays for it."""

from __future__ import annotations

import sys
import time
from typing import Any

from keepset.run import warm


def start(work: Any) -> None:
    """Run a job (`record.Work`) in a fork of the warm process, or here if there is none.

    Raises:
        SystemExit: the fork failed; it has said why.
    """
    clock_s = time.monotonic()
    request = (work, clock_s, time.process_time())
    status = warm.hand_over("keepset.run.step:run_forked", request)
    if status is None:
        from keepset.run.step import run_step
        from keepset.run.timing import Start

        run_step(work, Start(clock_s))
    elif status:
        sys.exit(status)
