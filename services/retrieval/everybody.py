"""Everybody of a release as retrieval holds them: identifiers, vectors and traits, read file by file.

Shapes: U users with a vector, D width, F traits.
Vectors and traits go straight into arrays that grow where they lie, so nobody is in memory twice: a release is loaded
in a few files' more memory than it is held in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.memory import give_back
from sonder.core.storage import Folder
from sonder.profiles.traits import TRAIT_COLUMNS, compute_traits, derive_traits
from sonder.segments.lookalike import People

USER_ID_TYPE = pa.large_string()  # 32-bit offsets end at 2 GiB of identifiers


@dataclass(frozen=True)
class Everybody:
    """The users of a release by USER_ID_TYPE; rows of `user_ids` and `people` correspond."""

    user_ids: pa.Array  # [U] who have a vector
    cold_ids: pa.Array  # who have none
    people: People  # [U]


def read_everybody(profiles: Folder, dim: int) -> Everybody:
    """Of all files of profiles; the traits are those of the first file's users, a random draw by digest."""
    spec, known_ids, cold_ids = None, [], []
    vectors_UD = np.empty((0, dim), dtype=np.float32)
    traits_UF = np.empty((0, 0), dtype=np.float32)
    for name in (name for name in profiles.files() if name.endswith(".parquet")):
        table = (profiles / name).read_table([*TRAIT_COLUMNS, "embedding"])
        if spec is None:
            spec = derive_traits(table)
            traits_UF = np.empty((0, spec.num_traits), dtype=np.float32)
        is_known = pc.is_valid(table.column("embedding"))
        _append(traits_UF, compute_traits(table, spec)[is_known.to_numpy()])
        known = table.filter(is_known)
        _append(vectors_UD, known.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, dim))
        known_ids += known.column("user_id").chunks
        cold_ids += table.filter(pc.invert(is_known)).column("user_id").chunks
    everybody = Everybody(_joined(known_ids), _joined(cold_ids), People(vectors_UD, traits_UF))
    give_back()
    return everybody


def _append(held_ND: NDArray[np.float32], more_ND: NDArray[np.float32]) -> None:
    """Grow an array that nobody else looks at: its pages are moved, not copied."""
    num = len(held_ND)
    held_ND.resize((num + len(more_ND), held_ND.shape[1]), refcheck=False)
    held_ND[num:] = more_ND


def _joined(chunks: list[pa.Array]) -> pa.Array:
    wide = [chunk.cast(USER_ID_TYPE) for chunk in chunks]
    return pa.concat_arrays(wide) if wide else pa.array([], USER_ID_TYPE)
