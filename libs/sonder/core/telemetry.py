"""The telemetry seam: one span and one line of counts per stage, never per row, never a user id.

The library asks the OpenTelemetry API for a tracer and does not care who listens. `configure()` is called by `main`
functions only: with OTEL_EXPORTER_OTLP_ENDPOINT set, spans are exported; otherwise they cost next to nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace

logger = logging.getLogger("sonder")
_tracer = trace.get_tracer("sonder")


def configure(service_name: str) -> None:
    """Export spans by OTLP over HTTP if an endpoint is configured in the environment."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def stage(name: str, **attributes: str | int | float | bool) -> Iterator[dict[str, str | int | float | bool]]:
    """Span a stage and log one line when it ends; put its counts into the yielded dict."""
    counts: dict[str, str | int | float | bool] = {}
    started = time.perf_counter()
    with _tracer.start_as_current_span(name, attributes=dict(attributes)) as span:
        yield counts
        span.set_attributes(counts)
    seconds = time.perf_counter() - started
    shown = " ".join(f"{key}={_short(value)}" for key, value in {**attributes, **counts}.items())
    logger.info("%s: %s (%.1f s)", name, shown, seconds)


def _short(value: str | int | float | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def carrier() -> dict[str, str]:
    """The current trace context as headers, to hand to a worker or a submitted job."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def joined(headers: Mapping[str, str]) -> Iterator[None]:
    """Join the trace that `carrier()` described; names in capitals too, as a job's environment has them."""
    from opentelemetry import context

    known = {name.lower(): value for name, value in headers.items() if name.lower() in ("traceparent", "tracestate")}
    token = context.attach(propagate.extract(known))
    try:
        yield
    finally:
        context.detach(token)
