"""What every deployment tells of itself: its log, its spans, and whose requests a call of the gateway is for.

The gateway hands `caller()` along with each call as the argument `caller`; `observed` takes it off again, so that a
deployment's methods know nothing of it. Calls without it work the same and are nobody's.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind

from sonder.core import telemetry
from sonder.core.logs import configure_json_logs, for_requests, request_ids

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
LOG_LEVEL = "SONDER_LOG_LEVEL"


def start_observing(name: str) -> None:
    """Of the process of one deployment: log as JSON, send spans where the environment says. Called once, first."""
    configure_json_logs(f"sonder-{name}", level=os.environ.get(LOG_LEVEL, "INFO").upper())
    telemetry.configure(f"sonder-{name}")


def caller() -> dict[str, str]:
    """Trace context and request ids of the code that asks, to travel with a call; often empty."""
    found = telemetry.carrier() if telemetry.is_tracing() else {}
    if ids := request_ids():
        found["request_ids"] = ",".join(ids)
    return found


def observed(name: str) -> Callable[[Method], Method]:
    """Run each call of an async method for its caller: in a span of its trace, its request ids in every log line.

    The method's first argument is a sequence with one entry per user of the micro-batch.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def call(self: Any, first: Any, *rest: Any, caller: Mapping[str, str] | None = None) -> Any:
            if not caller:
                return await method(self, first, *rest)
            with for_requests(filter(None, caller.get("request_ids", "").split(","))):
                if "traceparent" not in caller or not telemetry.is_tracing():
                    return await method(self, first, *rest)
                with telemetry.joined(caller), telemetry.span(name, kind=SpanKind.SERVER, users=len(first)):
                    return await method(self, first, *rest)

        return call  # type: ignore[return-value]

    return decorate
