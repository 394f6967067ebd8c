"""Has the embedding space collapsed? Three numbers of a set of vectors.

mean_cosine      mean cosine of two different rows: near 0 for a space in use, near 1 when all say the same
first_pc_share   share of the variance along its first principal direction: 1 when everything lies on a line
effective_rank   exp of the entropy of the variance over the directions (Roy and Vetterli 2007): between 1 and the width
Rows of zeros (users without a vector, items of which nothing was learnt) are counted and left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def embedding_health(vectors_ND: NDArray[np.float32]) -> dict[str, float | int | None]:
    """The three numbers, None where fewer than two vectors exist or all are the same."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))
    units = vectors_ND[lengths > 0] / lengths[lengths > 0, None]
    num = len(units)
    health: dict[str, float | int | None] = {
        "num_vectors": num,
        "num_zero_vectors": len(vectors_ND) - num,
        "width": vectors_ND.shape[1],
        "mean_cosine": None,
        "first_pc_share": None,
        "effective_rank": None,
    }
    if num < 2:
        return health
    total = units.sum(axis=0)
    health["mean_cosine"] = float((total @ total - num) / (num * (num - 1)))  # of all pairs, without forming them
    centred = units - total / num
    variances = np.clip(np.linalg.eigvalsh(centred.T @ centred / num), 0, None)
    if variances.sum() < 1e-12:
        return health
    shares = variances / variances.sum()
    health["first_pc_share"] = float(shares.max())
    positive = shares[shares > 0]
    health["effective_rank"] = float(np.exp(-(positive * np.log(positive)).sum()))
    return health
