"""Rows of a file as they were read, before they mean anything: what every reader yields and the mapping takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.files import Partitions


@dataclass(frozen=True)
class RawBlock:
    """N rows of one file."""

    table: pa.Table  # any columns, any types
    log_order: NDArray[np.int64]  # [N]
    unparsable: pa.Table  # QUARANTINE_SCHEMA: lines that are no rows of the format
    whole_rows: Callable[[NDArray[np.int64]], pa.Array] | None = (
        None  # JSON of these rows, if `table` is a part of them
    )

    def with_partitions(self, partitions: Partitions) -> RawBlock:
        """Add the `key=value` folders above the file as columns, where the file has no column of this name."""
        table = self.table
        for name, value in partitions:
            if name not in table.column_names:
                table = table.append_column(name, pa.repeat(pa.scalar(value, pa.large_string()), table.num_rows))
        return replace(self, table=table)
