"""Problem documents (RFC 9457) -> the errors of sonder.core.errors, so that a caller handles one tree everywhere."""

from __future__ import annotations

import httpx

from sonder.core.errors import InvalidRequest, NotFound, NotReady, SonderError, StageUnavailable

_TRY_LATER = {429, 502, 503, 504}


def error_of(answer: httpx.Response) -> SonderError:
    """The error of an answer that is not a success; what was asked is named, never the whole body."""
    try:
        content = answer.json()
    except ValueError:
        content = {}
    content = content if isinstance(content, dict) else {}
    asked = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
    found = f"{asked} {content.get('title') or answer.reason_phrase}. {content.get('detail', '')}".strip()
    if answer.status_code == 404:
        return NotFound(found)
    if answer.status_code in _TRY_LATER:
        kind = NotReady if content.get("title") == NotReady.title else StageUnavailable
        return kind(found, do="Try again later.")
    if 400 <= answer.status_code < 500:
        return InvalidRequest(found)
    return SonderError(found, do="The server's log has the cause.")
