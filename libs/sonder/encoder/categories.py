"""Each item's place in the taxonomy as rows of a table: `a/b/c` has the levels `a`, `a/b` and `a/b/c`.

Shapes: I items, L levels, C categories of all levels together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary

MOST_LEVELS = 4


@dataclass(frozen=True)
class ItemCategories:
    """`paths_IL` holds category rows, `num` where an item has no (further) level."""

    paths_IL: NDArray[np.int64]
    num: int

    @property
    def num_levels(self) -> int:
        return int(self.paths_IL.shape[1])


def item_categories(vocabulary: Vocabulary) -> ItemCategories:
    """Number the categories of all levels by their path; no levels at all where no item has a category."""
    levels = pl.Series(vocabulary.items.column(Col.CATEGORY)).cast(pl.String).str.split("/")
    depth = min(int(levels.list.len().max() or 0), MOST_LEVELS)  # type: ignore[arg-type]
    prefixes = [
        pl.select(pl.when(levels.list.len() > level).then(levels.list.head(level + 1).list.join("/"))).to_series()
        for level in range(depth)
    ]
    known = pl.concat(prefixes).drop_nulls().unique().sort() if prefixes else pl.Series([], dtype=pl.String)
    rows = pl.DataFrame({"path": known}).with_row_index("row")
    columns = [
        pl.DataFrame({"path": prefix}).join(rows, on="path", how="left", maintain_order="left")["row"]
        for prefix in prefixes
    ]
    paths = np.full((vocabulary.num_items, depth), len(known), dtype=np.int64)
    for level, column in enumerate(columns):
        paths[:, level] = column.fill_null(len(known)).to_numpy()
    return ItemCategories(paths, len(known))
