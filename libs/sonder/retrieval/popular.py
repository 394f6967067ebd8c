"""What is answered where the encoder has no answer: items by their popularity of the moment, in serving and evaluation.

Shapes: I items.
Popularity is the decayed count of wanted events that a release holds (`sonder.encoder.trend`): what was fashionable a
year ago does not greet those who come today. Ties by item_id, since an item_index knows the whole log.
Limits: the first NUM_POPULAR items less the user's own; who has had them all gets nothing.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NUM_POPULAR = 2_000


def popular_order(popularity_I: NDArray[np.float64], item_ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """item_index of the most popular items, best first."""
    place_of_id_I = np.empty(len(item_ids), dtype=np.int64)
    place_of_id_I[pc.sort_indices(item_ids).to_numpy()] = np.arange(len(item_ids))
    return np.lexsort((place_of_id_I, -popularity_I))[:NUM_POPULAR]
