"""The telemetry seam: one span and one line of counts per stage, never per row, never a user id.

The library asks the OpenTelemetry API for a tracer and does not care who listens. `configure()` is called by `main`
functions, replicas and workers: it reads the standard OTEL_* variables (exporter, endpoint, sampler, resource), and
SONDER_TRACE_FOLDER, into which each process writes its spans as lines of JSON (sonder.core.span_files). With neither
of them nothing is recorded, and hot paths ask `is_tracing()` before they do any work for a span.

Context crosses processes as a plain dict, `carrier()` here and `joined()` there: as an argument of a call, as
variables of a submitted job (TRACEPARENT), as headers of a request.
Limits: a span tells the type of the error that ended it, not its message, which may quote data.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

logger = logging.getLogger("sonder")
TRACE_FOLDER = "SONDER_TRACE_FOLDER"
FLUSH_MS = 2_000  # a worker waits so long for a slow collector when its task ends

P = ParamSpec("P")
T = TypeVar("T")
Attribute = str | int | float | bool
_W3C = TraceContextTextMapPropagator()


class _Listening:
    """Who listens in this process; one per process, set by `configure` and, in tests, by `listening`."""

    def __init__(self) -> None:
        self.tracer = trace.get_tracer("sonder")
        self.flush: Callable[[int], object] | None = None  # None: nobody
        self.flushing: threading.Thread | None = None
        self.is_slow = False  # the collector, once


_process = _Listening()


def is_asked_for() -> bool:
    """Whether the environment asks for spans."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(_otlp_endpoint() or os.environ.get(TRACE_FOLDER))


def _otlp_endpoint() -> str | None:
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def is_tracing() -> bool:
    """Whether anybody listens to this process: a hot path does nothing for a span otherwise."""
    return _process.flush is not None


def configure(service_name: str) -> None:
    """Send this process's spans where the environment says; once per process, later calls change nothing.

    OTEL_SERVICE_NAME overrides the name. Sampling is OTEL_TRACES_SAMPLER (parentbased_always_on unless set;
    parentbased_traceidratio with OTEL_TRACES_SAMPLER_ARG=0.01 keeps one trace in a hundred).
    """
    if is_tracing() or not is_asked_for():
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    named = Resource({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service_name})
    provider = TracerProvider(resource=Resource.create().merge(named))
    if _otlp_endpoint():
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if folder := os.environ.get(TRACE_FOLDER):
        from sonder.core.span_files import SpanFile

        provider.add_span_processor(SimpleSpanProcessor(SpanFile(folder, service_name)))
    trace.set_tracer_provider(provider)
    _process.tracer, _process.flush = provider.get_tracer("sonder"), provider.force_flush


@contextmanager
def listening(processor: SpanProcessor) -> Iterator[None]:
    """Within the block, all spans of this process go to the processor and nowhere else."""
    from opentelemetry.sdk.trace import TracerProvider

    before = _process.tracer, _process.flush
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    _process.tracer, _process.flush = provider.get_tracer("sonder"), provider.force_flush
    try:
        yield
    finally:
        _process.tracer, _process.flush = before
        provider.shutdown()


# -- spans -----------------------------------------------------------------------------------------------------------


@contextmanager
def stage(name: str, **attributes: Attribute) -> Iterator[dict[str, Attribute]]:
    """Span a stage and log one line when it ends; put its counts into the yielded dict."""
    counts: dict[str, Attribute] = {}
    started = time.perf_counter()
    with span(name, attributes) as current:
        yield counts
        current.set_attributes(counts)
    seconds = time.perf_counter() - started
    shown = " ".join(f"{key}={_short(value)}" for key, value in {**attributes, **counts}.items())
    logger.info("%s: %s (%.1f s)", name, shown, seconds)


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    start_ns: int | None = None,
    links: Sequence[SpanContext] = (),
) -> Iterator[Span]:
    """A span without a log line, current within the block; an error that leaves it is its status."""
    with _process.tracer.start_as_current_span(
        name,
        kind=kind,
        start_time=start_ns,
        links=[Link(linked) for linked in links],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


@contextmanager
def batch_span(name: str, callers: Sequence[SpanContext | None], **attributes: Attribute) -> Iterator[None]:
    """The span of work that several callers share: child of the first who is recorded, linked to the others."""
    recorded = [caller for caller in callers if caller is not None and caller.trace_flags.sampled]
    if not recorded:
        yield
        return
    parent = trace.set_span_in_context(trace.NonRecordingSpan(recorded[0]))
    token = context.attach(parent)
    try:
        with span(name, attributes, links=recorded[1:]):
            yield
    finally:
        context.detach(token)


def current() -> SpanContext | None:
    """The span under way; None where nobody listens or none is."""
    if not is_tracing():
        return None
    found = trace.get_current_span().get_span_context()
    return found if found.is_valid else None


def _short(value: Attribute) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- across processes ------------------------------------------------------------------------------------------------


def carrier() -> dict[str, str]:
    """The current trace context as headers, to hand to a worker or a submitted job; empty outside any span."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


@contextmanager
def joined(headers: Mapping[str, str]) -> Iterator[None]:
    """Join the trace that `carrier()` described; names in capitals too, as a job's environment has them."""
    known = {name.lower(): value for name, value in headers.items() if name.lower() in ("traceparent", "tracestate")}
    token = context.attach(_W3C.extract(known))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def worker_span(name: str, headers: Mapping[str, str], **attributes: Attribute) -> Iterator[None]:
    """In a task of another process: a span of the caller's trace, on its way to whoever listens when the block ends.

    Workers end without notice, so what they recorded cannot wait for its batch.
    """
    configure("sonder-worker")
    if not (headers and is_tracing()):
        yield
        return
    try:
        with joined(headers), span(name, attributes):
            yield
    finally:
        _flush_soon()


def _flush_soon() -> None:
    """Wait for what was recorded to be gone; for a collector that once took too long nobody waits again."""
    if _process.flush is None or (_process.flushing is not None and _process.flushing.is_alive()):
        return
    # In a thread: the exporter's retries do not heed the time that a flush is given.
    _process.flushing = threading.Thread(target=_process.flush, args=(FLUSH_MS,), daemon=True)
    _process.flushing.start()
    if not _process.is_slow:
        _process.flushing.join(FLUSH_MS / 1000)
        _process.is_slow = _process.flushing.is_alive()


def carried(name: str, function: Callable[P, T]) -> Callable[P, T]:
    """The function, each of whose calls, in whatever process, is a span of the trace of this moment.

    A generator's span ends when it is exhausted. Without a trace it is the function itself.
    """
    headers = carrier() if is_tracing() else {}
    if not headers:
        return function

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with worker_span(name, headers):
            return function(*args, **kwargs)

    @wraps(function)
    def generate(*args: P.args, **kwargs: P.kwargs) -> Any:
        with worker_span(name, headers):
            yield from function(*args, **kwargs)  # type: ignore[misc]

    return generate if inspect.isgeneratorfunction(function) else call
