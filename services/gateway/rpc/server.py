"""A gRPC server beside the HTTP application of a gateway: same doors, same engine, with reflection and health.

Serve's own gRPC proxy listens on every interface, whatever it is told (docs/decisions/0006), so this one is ours. The
gateways of a node share the port (SO_REUSEPORT); a client whose gateway dies reconnects to another.
Limits: no TLS, as over HTTP: beyond loopback something in front ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError

from services.gateway.doors import Doors
from services.gateway.engine import Engine
from services.gateway.problems import INTERNAL, MAX_BODY_BYTES
from services.gateway.rpc import sonder_pb2 as pb
from services.gateway.rpc.requests import METHODS, Method, to_message
from services.gateway.split import SplitEngine
from services.gateway.told import EXPERIMENT_HEADER, arms_of
from sonder.core import metrics, telemetry
from sonder.core.errors import ConfigurationError, NotReady, SonderError
from sonder.core.logs import for_requests, request_id_of

logger = logging.getLogger("sonder")
SERVICE = pb.DESCRIPTOR.services_by_name["Sonder"].full_name
DRAIN_S = 5.0
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class RpcServer:
    """Answers from whatever `engine` gives at the time of a call. Of one event loop."""

    def __init__(self, engine: Callable[[], Engine | SplitEngine | None], doors: Doors | None) -> None:
        self._engine, self._doors = engine, doors
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def start(self, host: str, port: int) -> int:
        """Listen -> the port. ConfigurationError where that cannot be."""
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", MAX_BODY_BYTES)]
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answering(name, method),
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
            for name, method in METHODS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise ConfigurationError(f"gRPC cannot listen at {address}", expected="a free port") from error
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no more calls, finish those under way."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(drain_s)

    def _answering(self, name: str, method: Method) -> Callable[[Message, Any], Awaitable[Message]]:
        route = f"/{SERVICE}/{name}"

        async def answer(request: Message, context: Any) -> Message:
            started = time.perf_counter()
            given = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            request_id, code = request_id_of(given.get("x-request-id")), grpc.StatusCode.INTERNAL
            await context.send_initial_metadata((("x-request-id", request_id),))
            try:
                with for_requests((request_id,)), telemetry.joined(given), telemetry.span(f"grpc {name}"):
                    await self._admit(method, request, given)
                    engine = self._engine()
                    if engine is None:
                        raise NotReady("No release is loaded yet", do="Try again shortly.")
                    engine = engine.named(given.get("x-sonder-release"))
                    content = await method.answer(engine, request)
                    if (arms := arms_of(content)) is not None:
                        context.set_trailing_metadata(((EXPERIMENT_HEADER, arms),))
                    answered = to_message(method.response, content)
                code = grpc.StatusCode.OK
                return answered
            except _Refused as refused:
                code = refused.code
                context.set_trailing_metadata(refused.trailing)
                await _abort(context, code, str(refused))
            except ValidationError as error:
                code = grpc.StatusCode.INVALID_ARGUMENT
                told = [f"{'/'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
                await _abort(context, code, "; ".join(told))
            except SonderError as error:
                code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
                await _abort(context, code, INTERNAL if error.status == 500 else str(error))
            except Exception as error:
                logger.error("%s failed", route, exc_info=error)
                await _abort(context, code, INTERNAL)
            finally:
                metrics.REQUEST_SECONDS.labels("GRPC", route, code.name).observe(time.perf_counter() - started)

        return answer

    async def _admit(self, method: Method, request: Message, given: dict[str, str]) -> None:
        if self._doors is None:
            return
        kind, _, bearer = given.get("authorization", "").partition(" ")
        presented = given.get("x-api-key") or (bearer.strip() if kind.lower() == "bearer" else "")
        refusal = await self._doors.refusal(presented or None, method.asked(request))
        if refusal is not None:
            trailing = tuple((name, value) for name, value in refusal.headers.items() if name == "retry-after")
            raise _Refused(_CODES[refusal.status], refusal.detail, trailing)


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, detail: str, trailing: tuple[tuple[str, str], ...]) -> None:
        super().__init__(detail)
        self.code, self.trailing = code, trailing


async def _abort(context: Any, code: grpc.StatusCode, detail: str) -> NoReturn:
    """End the call: this raises."""
    await context.abort(code, detail[:1_000])
    raise AssertionError("abort() returned")
