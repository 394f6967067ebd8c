"""What a deployment computes once before it is healthy: torch, xgboost and polars set themselves up at a first call.

A deployment whose constructor has returned gets requests, and the first of them would pay for that.
"""

from __future__ import annotations

import numpy as np

from sonder.profiles.packing import EVENT_DTYPE


def sample_batch(as_of_us: int) -> tuple[list[str], list[bytes]]:
    """A user with one event, of the first item, just before `as_of`, and one without any -> user_ids, timelines [2]."""
    event = np.array([(as_of_us - 1, np.nan, 0, 0, -1)], dtype=EVENT_DTYPE)
    return ["one event", "no event"], [event.tobytes(), b""]
