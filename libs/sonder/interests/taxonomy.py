"""The category tree as arrays: which category of each level an item lies in.

Shapes: L levels, I items, C categories of one level.
A path `a/b/c` lies in `a` at level 1, in `a/b` at level 2, in `a/b/c` at level 3; deeper parts are not told apart. An
item whose path is shorter has no category at the levels below it. Learned item groups are paths too (.item_groups).
Limits: one number per item and level in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_LEVELS = 3


@dataclass(frozen=True)
class Taxonomy:
    """Categories by level, sorted by name; `codes_LI` is the place in `names[level]`, -1 where an item has none."""

    names: tuple[tuple[str, ...], ...]
    codes_LI: NDArray[np.int32]

    @property
    def num_levels(self) -> int:
        return len(self.names)

    @classmethod
    def of_paths(cls, paths: pa.Array | pa.ChunkedArray) -> Taxonomy:
        """Read one path per item [I], null or empty where an item has none; without any path there is no level."""
        flat = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
        coded = flat.cast(pa.string()).dictionary_encode()
        place_I = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        prefixes = [_prefixes(path) for path in coded.dictionary.to_pylist()]
        names, codes = [], []
        for level in range(max(map(len, prefixes), default=0)):
            at_level = [chain[level] if level < len(chain) else None for chain in prefixes]
            known = sorted({name for name in at_level if name is not None})
            code_of = {name: code for code, name in enumerate(known)}
            code_D = np.array([-1 if name is None else code_of[name] for name in [*at_level, None]], dtype=np.int32)
            names.append(tuple(known))
            codes.append(code_D[place_I])  # index -1, no path, reads the last
        return cls(tuple(names), np.array(codes, dtype=np.int32).reshape(len(names), len(flat)))


def _prefixes(path: str) -> list[str]:
    """`a/b/c` -> a, a/b, a/b/c."""
    parts = [part for part in path.split("/") if part.strip()]
    return list(accumulate(parts[:MAX_LEVELS], lambda left, right: f"{left}/{right}"))
