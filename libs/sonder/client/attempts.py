"""When a call is sent again, and what every request carries: the rules that both clients share.

Tried again are 429, 502, 503, 504 and a broken connection: up to `max_retries` times, after the server's `Retry-After`
or a random part of a doubling pause (full jitter, so that clients that failed together do not come back together), and
not past the deadline, which counts from the first try.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from sonder.client.problems import error_of
from sonder.core import telemetry
from sonder.core.errors import SonderError, StageUnavailable

API_KEY = "SONDER_API_KEY"
TRY_AGAIN = frozenset((429, 502, 503, 504))
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass
class Attempts:
    """The tries of one call: ask `pause_s` after each failure; it raises when there is no further try."""

    url: str
    max_retries: int
    deadline_s: float
    waited_s: float = 0.0  # pauses and tries, as the client counts them
    tries: int = 0

    def pause_s(self, failure: httpx.Response | httpx.TransportError) -> float:
        """Seconds before the next try; raises what the failure means where none is left."""
        answer = failure if isinstance(failure, httpx.Response) else None
        may_help = answer is None or answer.status_code in TRY_AGAIN
        pause = _pause_s(self.tries, None if answer is None else answer.headers.get("retry-after"))
        self.tries += 1
        if not may_help or self.tries > self.max_retries or self.waited_s + pause > self.deadline_s:
            raise error_of(answer) if answer is not None else self._unreachable(failure)
        return pause

    def _unreachable(self, failure: object) -> SonderError:
        told = str(failure) or type(failure).__name__
        return StageUnavailable(f"{self.url} does not answer: {told}", do="Start it with `sonder serve`.")


def request_headers(accept: str) -> Mapping[str, str]:
    """What is accepted, and the trace that this code is part of, where there is one."""
    return {"accept": accept, **telemetry.carrier()}


def key_headers(api_key: str | None) -> Mapping[str, str]:
    """The given key, or the one of the environment; never part of an error or a log line."""
    key = api_key or os.environ.get(API_KEY)
    return {"authorization": f"Bearer {key}"} if key else {}


def _pause_s(attempt: int, retry_after: str | None) -> float:
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt)
    asked = min(float(retry_after), 30.0) if retry_after is not None and retry_after.isdigit() else 0.0
    return asked + random.uniform(0, longest)
