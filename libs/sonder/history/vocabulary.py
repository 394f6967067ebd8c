"""Raw ids <-> dense indices, for items, actions and surfaces.

`item_id` is what the product calls the item, `item_index` is its row in every matrix. Indices are handed out by
falling number of events, then id, anew for each snapshot: what two snapshots share is matched by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.storage import Folder
from sonder.events.contract import Col

ITEMS_FILE = "items.parquet"
VOCABULARY_FILE = "vocabulary.json"

ITEM_SCHEMA = pa.schema(
    [
        pa.field(Col.ITEM_INDEX, pa.int32(), nullable=False),
        pa.field(Col.ITEM_ID, pa.string(), nullable=False),
        pa.field(Col.CATEGORY, pa.string()),  # a/b/c
        pa.field(Col.TITLE, pa.string()),
        pa.field(Col.NUM_EVENTS, pa.int64(), nullable=False),  # in the whole log; cut in time yourself for training
        pa.field(Col.FIRST_SEEN, pa.timestamp("us", tz="UTC")),
        pa.field(Col.LAST_SEEN, pa.timestamp("us", tz="UTC")),
        pa.field(Col.VECTOR, pa.list_(pa.float32())),  # precomputed, from the catalogue
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """I items, their catalogue columns, and the actions and surfaces of the log."""

    items: pa.Table  # ITEM_SCHEMA, row i has item_index i
    actions: tuple[str, ...]
    action_weights: tuple[float, ...]  # +1 wanted, 0 shown, -1 unwanted (events.actions)
    surfaces: tuple[str, ...]

    @property
    def num_items(self) -> int:
        return int(self.items.num_rows)

    @property
    def item_ids(self) -> pa.ChunkedArray:
        return self.items.column(Col.ITEM_ID)

    def item_index(self, item_ids: pa.Array) -> NDArray[np.int32]:
        """[N] strings -> item_index int32 [N], -1 where unknown."""
        return _index(item_ids, self.item_ids.combine_chunks(), np.int32)

    def action_index(self, actions: pa.Array) -> NDArray[np.int16]:
        return _index(actions, pa.array(self.actions, pa.string()), np.int16)

    def surface_index(self, surfaces: pa.Array) -> NDArray[np.int16]:
        return _index(surfaces, pa.array(self.surfaces, pa.string()), np.int16)

    def weight_of(self, actions_N: NDArray[np.int16]) -> NDArray[np.float32]:
        """Weight of each event's action [N]; an unknown action weighs 0."""
        weights = np.asarray([*self.action_weights, 0.0], dtype=np.float32)  # index -1 reads the last
        return weights[actions_N]

    def save(self, folder: Folder) -> None:
        (folder / ITEMS_FILE).write_table(self.items.cast(ITEM_SCHEMA))
        content: dict[str, Any] = {
            "actions": list(self.actions),
            "action_weights": list(self.action_weights),
            "surfaces": list(self.surfaces),
        }
        (folder / VOCABULARY_FILE).write_json(content)

    @classmethod
    def load(cls, folder: Folder) -> Vocabulary:
        content = (folder / VOCABULARY_FILE).read_json()
        return cls(
            items=(folder / ITEMS_FILE).read_table(),
            actions=tuple(content["actions"]),
            action_weights=tuple(content["action_weights"]),
            surfaces=tuple(content["surfaces"]),
        )


def _index(values: pa.Array, known: pa.Array, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    found = pc.index_in(values.cast(pa.string()), value_set=known.cast(pa.string()))
    if values.null_count:  # a null is not an id, even if index_in would match null to null
        found = pc.if_else(pc.is_valid(values), found, pa.scalar(None, pa.int32()))
    dense: NDArray[Any] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(dtype)
    return dense
