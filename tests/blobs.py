"""Vectors with known groups, for the tests of behaviour clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def blobs(
    num_groups: int, users_a_group: int, *, width: int = 16, spread: float = 0.12, seed: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors around `num_groups` random directions, in mixed order -> vectors [U, D], group of each [U]."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((num_groups, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    groups = draw.permutation(np.repeat(np.arange(num_groups), users_a_group))
    vectors = centres[groups] + spread * draw.standard_normal((len(groups), width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), groups
