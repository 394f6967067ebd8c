"""What every deployment tells of itself: its log, its spans, and whose requests a call of the gateway is for.

The gateway hands `caller()` along with each call as the argument `caller`; `observed` takes it off again, so that a
deployment's methods know nothing of it. Calls without it work the same and are nobody's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind
from ray import serve
from ray.serve.exceptions import RayServeException

from sonder.core import telemetry
from sonder.core.logs import configure_json_logs, for_requests, request_ids

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])
_is_observing = False
LOG_LEVEL = "SONDER_LOG_LEVEL"  # DEBUG: every request has its line; INFO: slow and failed ones
LOG_FOLDER = "SONDER_LOG_FOLDER"  # a file per process in it; else the process's stderr, which Ray keeps


def start_observing(name: str) -> None:
    """Of a replica's process: log as JSON, send spans where the environment says. The first call gives the name.

    Outside of a replica nothing happens: the log of that process is not ours.
    """
    global _is_observing
    if _is_observing or not _is_replica():
        return
    _is_observing = True
    service, folder = f"sonder-{name}", os.environ.get(LOG_FOLDER)
    level = os.environ.get(LOG_LEVEL, "INFO").upper()
    # Not sys.stderr: Serve puts its own logger there, which would wrap each line and hold it back.
    configure_json_logs(service, Path(folder) if folder else sys.__stderr__, level=level)
    telemetry.configure(service)


def _is_replica() -> bool:
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


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
        async def call(self: Any, first: Any, *rest: Any, caller: Mapping[str, str] | None = None, **named: Any) -> Any:
            if not caller:
                return await method(self, first, *rest, **named)
            with for_requests(filter(None, caller.get("request_ids", "").split(","))):
                if "traceparent" not in caller or not telemetry.is_tracing():
                    return await method(self, first, *rest, **named)
                with telemetry.joined(caller), telemetry.span(name, {"users": len(first)}, kind=SpanKind.SERVER):
                    return await method(self, first, *rest, **named)

        return call  # type: ignore[return-value]

    return decorate
