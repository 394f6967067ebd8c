"""The in-memory form of many histories: flat arrays, newest event of a user last.

Shapes: U users, N events in all. Everything downstream (encoder, interests, segments, features) reads this one type,
in training, in batch and online. Cuts in time are masks, so a point-in-time view costs one comparison per event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.errors import DataError
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary

MICROSECONDS_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Timelines:
    """Histories of U users. Rows of `user_ids` and `offsets` correspond; users without events are kept."""

    user_ids: pa.Array  # string [U]
    offsets: NDArray[np.int64]  # [U + 1]; events of user u are offsets[u]:offsets[u + 1]
    items: NDArray[np.int32]  # [N] item_index, -1 for an item that the vocabulary does not know
    actions: NDArray[np.int16]  # [N] action_index, -1 unknown
    surfaces: NDArray[np.int16]  # [N] surface_index, -1 none or unknown
    times_us: NDArray[np.int64]  # [N] microseconds since 1970, UTC, ascending within a user
    values: NDArray[np.float64]  # [N] NaN where absent

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_events(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events per user [U]."""
        return np.diff(self.offsets)

    @property
    def user_rows(self) -> NDArray[np.int64]:
        """Row of the user of each event [N]."""
        return np.repeat(np.arange(self.num_users), self.lengths)

    @property
    def ages(self) -> NDArray[np.int64]:
        """How many newer events the same user has [N]: 0 for the last one."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(self.num_events)

    def keep(self, mask_N: NDArray[np.bool_]) -> Timelines:
        """Only the events where the mask holds; every user stays, perhaps without events."""
        if mask_N.all():
            return self
        kept_before = np.concatenate(([0], np.cumsum(mask_N, dtype=np.int64)))
        return replace(
            self,
            offsets=kept_before[self.offsets],
            items=self.items[mask_N],
            actions=self.actions[mask_N],
            surfaces=self.surfaces[mask_N],
            times_us=self.times_us[mask_N],
            values=self.values[mask_N],
        )

    def before(self, cutoff_us: int) -> Timelines:
        """Events strictly before the cutoff: all that a feature at this cutoff may read."""
        return self.keep(self.times_us < cutoff_us)

    def between(self, start_us: int, end_us: int) -> Timelines:
        """Events with start <= time < end: what a label of the window [start, end) may read."""
        return self.keep((self.times_us >= start_us) & (self.times_us < end_us))

    def last(self, num: int) -> Timelines:
        """The newest `num` events of each user."""
        return self.keep(self.ages < num)

    def without_last(self, num: int) -> Timelines:
        """All but the newest `num` events of each user."""
        return self.keep(self.ages >= num)

    def take(self, rows: NDArray[np.int64]) -> Timelines:
        """The users at these rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        picked = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Timelines(
            user_ids=self.user_ids.take(pa.array(rows)),
            offsets=offsets,
            items=self.items[picked],
            actions=self.actions[picked],
            surfaces=self.surfaces[picked],
            times_us=self.times_us[picked],
            values=self.values[picked],
        )

    @classmethod
    def concat(cls, parts: list[Timelines]) -> Timelines:
        """Join disjoint sets of users."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            user_ids=pa.concat_arrays([part.user_ids for part in parts]),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            items=np.concatenate([part.items for part in parts]),
            actions=np.concatenate([part.actions for part in parts]),
            surfaces=np.concatenate([part.surfaces for part in parts]),
            times_us=np.concatenate([part.times_us for part in parts]),
            values=np.concatenate([part.values for part in parts]),
        )

    @classmethod
    def from_history(cls, table: pa.Table, vocabulary: Vocabulary) -> Timelines:
        """Read rows of a history snapshot (history.snapshot.HISTORY_SCHEMA)."""
        table = table.combine_chunks()
        items = _flat(table, Col.ITEM_ID)
        lengths = pc.list_value_length(_column(table, Col.ITEM_ID)).to_numpy(zero_copy_only=False)
        return cls(
            user_ids=_column(table, Col.USER_ID).cast(pa.string()),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            items=vocabulary.item_index(items),
            actions=vocabulary.action_index(_flat(table, Col.ACTION)),
            surfaces=vocabulary.surface_index(_flat(table, Col.SURFACE)),
            times_us=_flat(table, Col.TIMESTAMP).cast(pa.int64()).to_numpy(),
            values=_flat(table, Col.VALUE).fill_null(float("nan")).to_numpy(),
        )


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise DataError(f"A history table without column {name!r}", expected="rows of a history snapshot")
    column = table.column(name)
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _flat(table: pa.Table, name: str) -> pa.Array:
    return _column(table, name).flatten()
