"""Online events into packed timelines: what a store's record knows of a user, and what has arrived since.

The events of a user stay in the order of time, ties in the order in which they arrived; the newest `max_events` stay.
An item, an action or a surface that the release does not know has index -1, as in a history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sonder.events.contract import Col
from sonder.events.online import OnlineEvent
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import EVENT_BYTES, EVENT_DTYPE


class EventPacker:
    """Indices of one release's vocabulary, by id."""

    def __init__(self, vocabulary: Vocabulary, *, max_events: int) -> None:
        item_ids = vocabulary.items.column(Col.ITEM_ID).to_pylist()
        self._items = {item_id: index for index, item_id in enumerate(item_ids)}
        self._actions = {name: index for index, name in enumerate(vocabulary.actions)}
        self._surfaces: Mapping[str | None, int] = {name: index for index, name in enumerate(vocabulary.surfaces)}
        self._max_events = max_events

    def pack(self, events: Sequence[OnlineEvent]) -> bytes:
        """Events as they are in a timeline, in the order given."""
        rows = [
            (
                event.time_us,
                np.nan if event.value is None else event.value,
                self._items.get(event.item_id, -1),
                self._actions.get(event.action, -1),
                self._surfaces.get(event.surface, -1),
            )
            for event in events
        ]
        return np.array(rows, dtype=EVENT_DTYPE).tobytes()

    def merged(self, timeline: bytes, events: Sequence[OnlineEvent]) -> bytes:
        """The timeline with these events in their places."""
        if not events:
            return timeline
        joined = np.frombuffer(timeline + self.pack(events), dtype=EVENT_DTYPE)
        ordered = joined[np.argsort(joined["time_us"], kind="stable")]
        return ordered.tobytes()[-self._max_events * EVENT_BYTES :]
