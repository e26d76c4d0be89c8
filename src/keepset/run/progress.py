"""One line that says what runs, how fast, and how long it will take."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

logger = logging.getLogger("keepset")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """Counts tokens. The log gets a line for each setting; a terminal gets one line, rewritten in
    place; any other stream (CI, a file) gets only the closing line."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        """Start the clock.

        Args:
            label: "model corpus step".
            total: Tokens to run.
            stream: Where the line goes; standard error by default.
        """
        self._label = label
        self._total = max(total, 1)
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._start = time.monotonic()
        self._done = 0
        self._setting = ""

    def advance(self, tokens: int, setting: str) -> None:
        """Add `tokens` run under `setting`."""
        self._done += tokens
        if setting != self._setting:
            self._setting = setting
            logger.info(self._line())
        if self._live:
            self._stream.write(f"\r\x1b[2K{self._line()}")
            self._stream.flush()

    def _line(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self._done / elapsed
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        share = min(self._done / self._total, 1)
        return (
            f"{self._label}: {self._setting}, {share:.0%}, {rate:.0f} tokens/s, {_clock(left)} left"
        )

    def close(self) -> None:
        """Write the closing line."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        line = (
            f"{self._label}: done, {self._done} tokens in {_clock(elapsed)}"
            f" ({self._done / elapsed:.0f} tokens/s)"
        )
        logger.info(line)
        start = "\r\x1b[2K" if self._live else ""
        self._stream.write(f"{start}{line}\n")
        self._stream.flush()
