"""A request's spans as a waterfall in the terminal, for `sonder serve --trace`.

Requests that shared a micro-batch: its spans are of the trace of the first of them, and linked to the others, which
show them as well and say so.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sonder.core.span_files import ENTRY, SpanLine, SpanReader

WIDTH, LEAST_WIDTH = 44, 16  # characters of the time axis
BESIDE = 76  # that names, durations and counts take
SECONDS_BETWEEN_LOOKS = 0.2
MOST_KEPT_S = 60.0  # spans are kept so long for requests that end later or are linked to them
_HIDDEN = {ENTRY, "http.request.method", "http.route"}  # the span's name says it
_QUIET = ("GET /healthz", "GET /readyz", "GET /metrics")
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


class Requests:
    """Collects spans until a request is whole: its entry span, which ends last, has arrived."""

    def __init__(self) -> None:
        self._spans: dict[str, list[SpanLine]] = defaultdict(list)  # by trace
        self._linked: dict[str, SpanLine] = {}  # a batch, by each span that it is linked to
        self._pending: list[SpanLine] = []  # entries that were not shown yet

    def add(self, spans: Iterable[SpanLine]) -> None:
        """New spans, in any order."""
        for span in spans:
            self._spans[span.trace_id].append(span)
            self._linked.update(dict.fromkeys(span.links, span))
            if span.is_entry:
                self._pending.append(span)

    def whole(self) -> list[list[SpanLine]]:
        """The spans of each request that has ended since the last call, in order of their end."""
        ended, self._pending = sorted(self._pending, key=lambda entry: entry.end_ns), []
        done = []
        for entry in ended:
            below = _below(entry, self._spans[entry.trace_id])
            done.append([*below, *self._shared(below)])
        self._forget()
        return done

    def _shared(self, below: Sequence[SpanLine]) -> list[SpanLine]:
        """The batches that worked for a request of another trace, with what is below them."""
        batches = [self._linked[span.span_id] for span in below if span.span_id in self._linked]
        return [span for batch in batches for span in _below(batch, self._spans.get(batch.trace_id, ()))]

    def _forget(self) -> None:
        oldest_ns = time.time_ns() - int(MOST_KEPT_S * 1e9)
        kept = {trace: [s for s in spans if s.end_ns > oldest_ns] for trace, spans in self._spans.items()}
        self._spans = defaultdict(list, {trace: spans for trace, spans in kept.items() if spans})
        self._linked = {of: span for of, span in self._linked.items() if span.end_ns > oldest_ns}


def _below(top: SpanLine, spans: Iterable[SpanLine]) -> list[SpanLine]:
    """The span and its descendants, each before its children, siblings by their start."""
    children: dict[str | None, list[SpanLine]] = defaultdict(list)
    for span in spans:
        children[span.parent_id].append(span)
    found, pending = [], [top]
    while pending:
        span = pending.pop()
        found.append(span)
        pending += sorted(children[span.span_id], key=lambda child: child.start_ns, reverse=True)
    return found


def waterfall(spans: Sequence[SpanLine], width: int = WIDTH) -> Table:
    """A table of one request: what, when on a common axis of `width` characters, how long, with which counts."""
    first, last = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    scale = width / max(last - first, 1)
    services = list(dict.fromkeys(span.service for span in spans))
    depths: dict[str, int] = {}
    title = Text(next((span.name for span in spans if "http.route" in span.attributes), spans[0].name))
    shown = Table(title=title, caption=f"trace {spans[0].trace_id}", box=None, title_justify="left", pad_edge=False)
    shown.add_column("span", no_wrap=True)
    shown.add_column("service", no_wrap=True, style="dim")
    shown.add_column("", width=width, no_wrap=True)
    shown.add_column("ms", justify="right", no_wrap=True)
    shown.add_column("", overflow="fold", style="dim")
    for span in spans:
        is_shared = span.trace_id != spans[0].trace_id
        depth = depths[span.span_id] = depths.get(span.parent_id or "", 0 if is_shared else -1) + 1
        begin = min(int((span.start_ns - first) * scale), width - 1)
        length = max(1, round((span.end_ns - span.start_ns) * scale))
        colour = "red" if span.is_error else _COLOURS[services.index(span.service) % len(_COLOURS)]
        bar = Text(" " * begin + "█" * min(length, width - begin), style=colour)
        told = [_told(name, value) for name, value in span.attributes.items() if name not in _HIDDEN]
        told += ["shared with another request"] if is_shared else []
        name = Text("  " * depth + span.name, style="red" if span.is_error else "")
        milliseconds = f"{(span.end_ns - span.start_ns) / 1e6:.2f}"
        shown.add_row(name, span.service.removeprefix("sonder-"), bar, milliseconds, Text(" ".join(told)))
    return shown


def _told(name: str, value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{name.removeprefix('sonder.').removeprefix('http.response.')}={shown}"


@contextmanager
def printed(folder: Path, console: Console | None = None) -> Iterator[None]:
    """While the block runs, print the waterfall of each request whose spans are written to the folder."""
    console, ended = console or Console(), threading.Event()
    reader, requests = SpanReader(folder), Requests()
    width = max(LEAST_WIDTH, min(WIDTH, console.width - BESIDE))

    def look() -> None:
        requests.add(reader.read())
        for spans in requests.whole():
            if not any(span.name in _QUIET for span in spans):
                console.print(waterfall(spans, width), "")

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            look()

    watcher = threading.Thread(target=watch, daemon=True, name="waterfall")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()
