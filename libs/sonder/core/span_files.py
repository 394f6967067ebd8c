"""Spans as lines of JSON in a folder, one file per process: what `sonder serve --trace` shows, and a test reads.

A line is whole when its newline is there; a reader keeps its place in each file and takes whole lines only.
Limits: every span is written when it ends, in the thread that ended it (some 50 us); meant for looking, not for load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


@dataclass(frozen=True)
class SpanLine:
    """One ended span. Ids are hexadecimal, times nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str | None
    is_entry: bool  # the first span of a request
    name: str
    service: str
    start_ns: int
    end_ns: int
    is_error: bool
    links: tuple[str, ...]  # span ids
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, span: ReadableSpan) -> SpanLine:
        assert span.context is not None
        return cls(
            trace_id=f"{span.context.trace_id:032x}",
            span_id=f"{span.context.span_id:016x}",
            parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
            is_entry=bool((span.attributes or {}).get(ENTRY)),
            name=span.name,
            service=str(span.resource.attributes.get("service.name", "")),
            start_ns=span.start_time or 0,
            end_ns=span.end_time or 0,
            is_error=not span.status.is_ok and not span.status.is_unset,
            links=tuple(f"{link.context.span_id:016x}" for link in span.links),
            attributes=dict(span.attributes or {}),
        )


ENTRY = "sonder.entry"  # attribute of the first span of a request, which ends last


class SpanFile(SpanExporter):
    """Appends the spans of this process to `folder/<service>-<pid>.jsonl`; opened with the first."""

    def __init__(self, folder: str, service: str) -> None:
        name = re.sub(r"[^\w.-]", "-", service)
        self._path = Path(folder) / f"{name}-{os.getpid()}.jsonl"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        content = b"".join(orjson.dumps(SpanLine.of(span), option=orjson.OPT_APPEND_NEWLINE) for span in spans)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(content)
        except OSError:  # the folder goes away with the command that asked for it
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


class SpanReader:
    """New spans of a folder since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[Path, int] = {}  # bytes read of each file

    def read(self) -> list[SpanLine]:
        """What was written since the last call, file by file."""
        found: list[SpanLine] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._places.get(path, 0))
                whole = file.read().rpartition(b"\n")
            self._places[path] = self._places.get(path, 0) + len(whole[0]) + len(whole[1])
            for line in whole[0].splitlines():
                fields = orjson.loads(line)
                found.append(SpanLine(**{**fields, "links": tuple(fields["links"])}))
        return found
