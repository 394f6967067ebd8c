from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sonder.core import telemetry

CALLER = {"TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


@contextmanager
def recorded() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with telemetry.listening(SimpleSpanProcessor(exporter)):
        yield exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_a_stage_is_a_span_with_its_counts_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with (
        recorded() as exporter,
        caplog.at_level(logging.INFO, "sonder"),
        telemetry.stage("embed", snapshot="s") as counts,
    ):
        counts["users"] = 3
    assert dict(by_name(exporter)["embed"].attributes or {}) == {"snapshot": "s", "users": 3}
    assert "embed: snapshot=s users=3" in caplog.text


def test_an_error_is_told_by_its_type_alone() -> None:
    with recorded() as exporter, pytest.raises(ValueError), telemetry.span("work"):
        raise ValueError("of user 4711")
    span = by_name(exporter)["work"]
    assert (span.status.description, span.events) == ("ValueError", ())


def test_a_worker_works_in_the_trace_that_the_caller_of_the_command_began() -> None:
    with recorded() as exporter:
        with telemetry.joined(CALLER), telemetry.span("build"):
            work = telemetry.carried("task", lambda number: number + 1)
        assert work(1) == 2
    spans = by_name(exporter)
    assert trace_of(spans["task"]) == trace_of(spans["build"]) == "0af7651916cd43dd8448eb211c80319c"
    assert spans["task"].parent is not None
    assert spans["task"].parent.span_id == spans["build"].context.span_id  # type: ignore[union-attr]


def test_the_span_of_a_generator_lasts_until_it_is_exhausted() -> None:
    def parts() -> Iterator[int]:
        yield 1
        with telemetry.span("inner"):
            yield 2

    with recorded() as exporter:
        with telemetry.span("build"):
            work = telemetry.carried("task", parts)
        assert list(work()) == [1, 2]
    spans = by_name(exporter)
    assert spans["inner"].parent == spans["task"].context


def test_without_a_listener_a_carried_function_is_itself_and_nobody_is_current() -> None:
    assert telemetry.carried("task", len) is len
    assert telemetry.current() is None
    assert not telemetry.is_tracing()


def test_a_batch_is_a_child_of_the_first_recorded_caller_and_linked_to_the_others() -> None:
    with recorded() as exporter:
        callers = []
        for name in ("first", "second"):
            with telemetry.span(name):
                callers.append(telemetry.current())
        with telemetry.batch_span("batch", [None, *callers], users=3):
            pass
    spans = by_name(exporter)
    assert spans["batch"].parent == spans["first"].context
    assert [link.context for link in spans["batch"].links] == [spans["second"].context]


def test_a_batch_of_nobody_who_is_recorded_has_no_span() -> None:
    with recorded() as exporter, telemetry.batch_span("batch", [None], users=1):
        pass
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({telemetry.TRACE_FOLDER: "/tmp/spans"}, True),
    ],
)
def test_the_standard_variables_say_whether_spans_are_recorded(
    variables: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*VARIABLES, "OTEL_SDK_DISABLED", telemetry.TRACE_FOLDER):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert telemetry.is_asked_for() is asked


WORK = """
import threading
from sonder.core import telemetry
waits = []
class Waited(threading.Thread):
    def join(self, timeout=None):
        waits.append(timeout)
        super().join(timeout)
telemetry.configure("sonder-test")
threading.Thread = Waited
for _ in range(3):
    with telemetry.worker_span("task", {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}):
        pass
print(waits.count(telemetry.FLUSH_MS / 1000), len(waits))
"""


def waits_of_work(endpoint: str, **variables: str) -> list[int]:
    """Run WORK in a process of its own -> how often its tasks waited for the collector: so long at most; at all."""
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return [int(count) for count in done.stdout.split()]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An endpoint that takes spans by OTLP over HTTP, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


def test_spans_of_a_worker_are_with_the_collector_when_its_task_ends(collector: tuple[str, list[bytes]]) -> None:
    endpoint, bodies = collector
    waits_of_work(endpoint)
    received = b"".join(bodies)
    assert received.count(bytes.fromhex("0af7651916cd43dd8448eb211c80319c")) == 3
    assert b"sonder-test" in received


def test_a_ratio_of_nothing_keeps_nothing_of_our_own_and_all_that_the_caller_sampled(
    collector: tuple[str, list[bytes]],
) -> None:
    endpoint, bodies = collector
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    waits_of_work(endpoint, **sampler)
    assert b"task" in b"".join(bodies)


def test_a_collector_that_is_away_is_waited_for_once() -> None:
    # The exporter itself tries longer than the first task waits, so it is still at it when the others end.
    assert waits_of_work("http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="4") == [1, 1]
