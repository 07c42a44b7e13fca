"""Logs of the services: one line an event on stderr, the time in UTC first."""

from __future__ import annotations

import logging
import sys
import time


class _Lines(logging.Formatter):
    """`2026-11-22T10:00:00.123Z warning exporter.app: message`; line breaks only before a traceback."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname.lower():7} {record.name}: "
        text = head + record.getMessage().replace("\n", "\n    ")
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def set_up(level: int = logging.INFO) -> None:
    """Everything from `level` on; of libraries only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in ("apscheduler", "aiohttp", "asyncio", "stripe", "watchfiles"):
        logging.getLogger(library).setLevel(logging.WARNING)
