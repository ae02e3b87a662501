"""Lines of a server's log, each with the request that it belongs to: for people, or as JSON objects.

A request is named by the header ``X-Request-Id`` that it came with, or by a name of its own; the answer repeats it.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

REQUEST_ID = "x-request-id"
_NAME = re.compile(r"[\x21-\x7e]{1,128}")
_CURRENT: ContextVar[str] = ContextVar("request_id", default="")
_QUIET = ("kserve.trace", "uvicorn.access", "httpx")


def request_id() -> str:
    """The name of the request that is being answered here; empty outside of one."""
    return _CURRENT.get()


@contextmanager
def identified(given: str) -> Iterator[str]:
    """Within this block, and in tasks begun in it, lines belong to this request: by its own name, or a new one."""
    name = given if _NAME.fullmatch(given) else f"{random.getrandbits(128):032x}"
    token = _CURRENT.set(name)
    try:
        yield name
    finally:
        _CURRENT.reset(token)


class TextLines(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO deeprec.serving: message (request 4f…)``, traces below."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        name = request_id()
        head = f"{_time(record):%Y-%m-%d %H:%M:%S}.{record.msecs:03.0f} {record.levelname} {record.name}: "
        line = head + record.getMessage() + (f" (request {name})" if name else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``request_id``, ``trace``."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id() or None,
            "trace": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None})


def set_up_logging(kind: Literal["text", "json"]) -> None:
    """Write every line of this process to standard error in one format; what only repeats requests is left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    for name in ("deeprec", "kserve", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    kserve = logging.getLogger("kserve")  # sets itself up where it has no handler
    kserve.handlers, kserve.propagate = [logging.NullHandler()], True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
