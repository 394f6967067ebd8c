"""Timelines of users as bytes: what the online store keeps and what a hop between deployments carries.

Shapes: U users, N events. One event is 24 bytes, little-endian, oldest first: time (int64 microseconds), value
(float64, NaN where absent), item_index (int32), action_index and surface_index (int16). So a micro-batch is the
users' bytes joined, and reading it is one cast.
Limits: indices belong to the vocabulary of one release; the record that holds them is fingerprinted by that release.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from sonder.core.errors import ArtefactMismatch
from sonder.history.timelines import Timelines

EVENT_DTYPE = np.dtype(
    [("time_us", "<i8"), ("value", "<f8"), ("item", "<i4"), ("action", "<i2"), ("surface", "<i2")], align=False
)
EVENT_BYTES = EVENT_DTYPE.itemsize


def pack_timelines(timelines: Timelines) -> list[bytes]:
    """One bytes object per user [U], empty for a user without events."""
    events = np.empty(timelines.num_events, dtype=EVENT_DTYPE)
    events["time_us"] = timelines.times_us
    events["value"] = timelines.values
    events["item"] = timelines.items
    events["action"] = timelines.actions
    events["surface"] = timelines.surfaces
    content = events.tobytes()
    ends = (timelines.offsets * EVENT_BYTES).tolist()
    return [content[start:end] for start, end in pairwise(ends)]


def unpack_timelines(user_ids: Sequence[str], packed: Sequence[bytes]) -> Timelines:
    """The inverse of `pack_timelines`, for the users of one micro-batch."""
    sizes = np.fromiter((len(part) for part in packed), dtype=np.int64, count=len(packed))
    if np.any(sizes % EVENT_BYTES) or len(packed) != len(user_ids):
        raise ArtefactMismatch(
            f"{len(packed)} packed timelines of {int(sizes.sum())} bytes for {len(user_ids)} users",
            expected=f"one timeline per user, {EVENT_BYTES} bytes an event",
            do="Load the store again from its release.",
        )
    events = np.frombuffer(b"".join(packed), dtype=EVENT_DTYPE)
    return Timelines(
        user_ids=pa.array(user_ids, pa.string()),
        offsets=np.concatenate(([0], np.cumsum(sizes // EVENT_BYTES))),
        items=np.ascontiguousarray(events["item"], dtype=np.int32),
        actions=np.ascontiguousarray(events["action"], dtype=np.int16),
        surfaces=np.ascontiguousarray(events["surface"], dtype=np.int16),
        times_us=np.ascontiguousarray(events["time_us"], dtype=np.int64),
        values=np.ascontiguousarray(events["value"], dtype=np.float64),
    )
