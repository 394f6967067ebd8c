"""Has the embedding space collapsed? A few numbers of a set of vectors, and a sentence for each that is alarming.

mean_cosine      mean cosine of two different rows: near 0 for a space in use, near 1 when all say the same
first_pc_share   share of the variance along its first principal direction: 1 when everything lies on a line
effective_rank   exp of the entropy of the variance over the directions (Roy and Vetterli 2007): between 1 and the width
shortest, longest   norms of the rows: 1 where inner products shall be cosines
Rows of zeros (users without a vector, items of which nothing was learnt) are counted and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Health = dict[str, float | int | None]
# Judgement: the synthetic worlds' spaces have mean cosines up to .13 and use more than 80 % of their directions.
HIGH_COSINE = 0.9
LOW_RANK_SHARE = 0.1  # of the directions that there could be
FEWEST = 20  # vectors below which a rank says more about their number than about the space
NORM_TOLERANCE = 1e-3


def embedding_health(vectors_ND: NDArray[np.float32]) -> Health:
    """The numbers, None where fewer than two vectors exist or all are the same."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))
    is_known = lengths > 0
    units = vectors_ND[is_known] / lengths[is_known, None]
    num = len(units)
    health: Health = {
        "num_vectors": num,
        "num_zero_vectors": len(vectors_ND) - num,
        "width": vectors_ND.shape[1],
        "shortest": float(lengths[is_known].min()) if num else None,
        "longest": float(lengths[is_known].max()) if num else None,
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


def health_warnings(vectors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with each named set of vectors ("users"), in plain words; empty if nothing is."""
    return [f"{name.capitalize()}: {said}" for name, health in vectors.items() for said in _warnings(health)]


def _warnings(health: Mapping[str, Any]) -> list[str]:
    num, zeros, cosine, rank = (
        health[key] for key in ("num_vectors", "num_zero_vectors", "mean_cosine", "effective_rank")
    )
    if num == 0:
        return ["none has a vector, so nothing can be said of any."] if zeros else []
    said = []
    if zeros > num:
        said.append(f"{zeros:,} of {num + zeros:,} have no vector.")
    if max(abs(health["shortest"] - 1), abs(health["longest"] - 1)) > NORM_TOLERANCE:
        said.append(
            f"the vectors are {health['shortest']:.3g} to {health['longest']:.3g} long and should have length 1: "
            "scores compare lengths as well as directions."
        )
    if num < FEWEST:
        return said
    if rank is None:
        return [*said, f"collapsed, all {num:,} vectors are the same."]
    if cosine > HIGH_COSINE:
        said.append(f"close to collapse, two vectors have a cosine of {cosine:.2f} on average: they all say the same.")
    most = min(health["width"], num - 1)
    if rank < LOW_RANK_SHARE * most:
        said.append(f"close to collapse, the vectors vary along {rank:.1f} of {most} directions.")
    return said
