"""Writes the log of the server: one JSON object a line, with the id of the request it is about."""

import contextvars
import json
import logging
import sys
import time
from typing import Any, TextIO

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
log = logging.getLogger("grm_jax.serving")


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs an event with its fields."""
    log.log(level, event, extra={"fields": fields})


class Lines(logging.Formatter):
    """Formats records as JSON: time, level, event, request, and the fields of `say`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up(stream: TextIO | None = None) -> None:
    """Sends the lines of the server, and warnings of all else, to a stream; by default stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
