"""Log lines as JSON, each with the ids of the requests it belongs to and of the trace; never a user id or a secret.

A request's id follows it through the event loop, into threads and, as an argument, to the other deployments. Work
that several requests share carries the ids of all of them, up to MOST_IDS.
What a line says is up to its caller; the backstop here takes out what follows `/users/` in a path, and values named
like secrets.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

import orjson
from opentelemetry import trace

MOST_IDS = 8
_UNUSUAL = re.compile(r"[^A-Za-z0-9._~+/=:-]")
MOST_CHARACTERS = 128
_USER_PATH = re.compile(r"(/users/)[^/?\s\"']+")
_SECRET = re.compile(
    r"(?i)\b(authorization|[\w-]*token|[\w-]*secret|password|[\w-]*api[-_]?key)(\"?\s*[=:]\s*\"?)(bearer\s+)?[^\s\",}]+"
)
_request_ids: ContextVar[tuple[str, ...]] = ContextVar("sonder_request_ids", default=())


def request_ids() -> tuple[str, ...]:
    """Of the requests that this code works for; empty outside any."""
    return _request_ids.get()


def request_id_of(given: str | None) -> str:
    """The caller's id, cut and made plain where it is not; a new one if there is none."""
    return _UNUSUAL.sub("_", given[:MOST_CHARACTERS]) if given else uuid.uuid4().hex


@contextmanager
def for_requests(ids: Iterable[str]) -> Iterator[None]:
    """Lines logged within the block carry these ids."""
    token = _request_ids.set(tuple(dict.fromkeys(ids))[:MOST_IDS])
    try:
        yield
    finally:
        _request_ids.reset(token)


def redacted(text: str) -> str:
    """The text without user ids in paths and without values that are named like secrets."""
    return _SECRET.sub(r"\1\2[redacted]", _USER_PATH.sub(r"\1[user]", text))


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, service, and request_ids and trace_id where there are any."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            "service": self._service,
        }
        if ids := _request_ids.get():
            line["request_ids"] = ids
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


def configure_json_logs(service: str, target: TextIO | Path | None, level: int | str = logging.INFO) -> None:
    """Write the `sonder` logger's lines as JSON; calling it again replaces where they go.

    `target`: a stream (None: stderr), or a folder in which this process gets a file `<service>-<pid>.jsonl`.
    """
    handler: logging.Handler
    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(target / f"{service}-{os.getpid()}.jsonl", encoding="utf-8")
    else:
        handler = logging.StreamHandler(target or sys.stderr)
    handler.setFormatter(JsonLines(service))
    log = logging.getLogger("sonder")
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
