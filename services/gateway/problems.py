"""Errors as RFC 9457 problem documents: for unknown routes, malformed input, too large bodies and our own mistakes.

A client's mistake is answered with what was found, what was expected and, for malformed input, a pointer to each place.
What goes wrong inside is logged and answered with its status alone: no paths, no traces, no values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sonder.core.errors import SonderError

logger = logging.getLogger("sonder")
MEDIA_TYPE = "application/problem+json"
MAX_BODY_BYTES = 2 << 20  # 1,000 ids of 256 bytes fit, even when every byte is escaped
INTERNAL = "Something failed inside; the server's log has the cause."


def problem(
    status: int,
    detail: str,
    *,
    instance: str,
    title: str | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document; `errors` has one entry per malformed place."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
    }
    if errors:
        content["errors"] = errors
    return Response(orjson.dumps(content), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(SonderError, on_sonder_error)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(BodyLimit)


class BodyLimit:
    """Refuses a body above MAX_BODY_BYTES, declared or streamed, before anything reads it whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
            await _too_large(scope["path"])(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self._app(scope, limited, send)


def _too_large(path: str) -> Response:
    detail = f"The body is too large. Expected: at most {MAX_BODY_BYTES} bytes."
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, instance=path)


async def on_sonder_error(request: Request, error: Exception) -> Response:
    """The problem document of an error of ours, and its line in the log where it is no mistake of the caller."""
    assert isinstance(error, SonderError)
    if error.status >= 500:
        logger.error("%s %s: %s", request.method, _route(request), error)
    detail = INTERNAL if error.status == 500 else str(error)
    headers = {"retry-after": "1"} if error.status == 503 else None
    return problem(error.status, detail, instance=request.url.path, title=error.title, headers=headers)


async def _on_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [_malformed_place(entry) for entry in error.errors()]
    detail = "; ".join(f"{entry['in']} {entry['pointer']}: {entry['detail']}" for entry in errors[:3])
    return problem(422, detail, instance=request.url.path, title="Request is invalid", errors=errors[:100])


def _malformed_place(entry: Mapping[str, Any]) -> dict[str, str]:
    place, *path = entry["loc"]
    if entry["type"] == "json_invalid":  # the location is an offset into the body
        return {"in": "body", "pointer": "", "detail": f"not JSON, at character {path[0] if path else 0}"}
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return {"in": str(place), "pointer": pointer, "detail": str(entry["msg"]).removeprefix("Value error, ")}


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return _too_large(path)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # a body that is not even text
        return problem(422, "The body is not JSON in UTF-8.", instance=path, title="Request is invalid")
    details = {
        404: f"No such route: {request.method} {path}. The routes are listed at /docs; a slash in an id is %2F.",
        405: f"{request.method} is not allowed here.",
    }
    detail = details.get(error.status_code, HTTPStatus(error.status_code).phrase + ".")
    return problem(error.status_code, detail, instance=path, headers=error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, _route(request), exc_info=error)
    return problem(500, INTERNAL, instance=request.url.path)


def _route(request: Request) -> str:
    """The route's template: the log holds no user id."""
    return str(getattr(request.scope.get("route"), "path", "unknown route"))
