"""Lists that are not ten times the same: maximal marginal relevance over candidates, for a batch of users at once.

Shapes: B users, P candidates of each, K answers, D width.
Each place goes to the candidate with the greatest (1 - diversity) * relevance - diversity * (its greatest cosine with
those chosen before). Relevance is scaled to 0..1 over a user's candidates, so that one `diversity` means the same
whatever the scores' scale: 0 keeps the order, 1 knows nothing but difference after the first place.
Source: Carbonell & Goldstein 1998. Cost: K products of B x P x D. Limits: what is not among the candidates is never
chosen, so give it several times K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POOL = 5  # candidates for each place


def diversify(
    candidates_BP: NDArray[np.int32],
    relevance_BP: NDArray[np.float32],
    items_ID: NDArray[np.float32],
    k: int,
    diversity_B: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Columns of the chosen candidates int64 [B, min(k, P)], in their order; -1 where no candidate is left.

    A candidate of -1 is none. `items_ID` need not be unit vectors; a vector of zeros is like nothing.
    """
    if not ((diversity_B >= 0) & (diversity_B <= 1)).all():
        raise ValueError(f"diversity of {diversity_B.min()} to {diversity_B.max()}, expected 0 to 1")
    num_users, num_candidates = candidates_BP.shape
    is_open_BP = candidates_BP >= 0
    vectors_BPD = _unit(items_ID[np.maximum(candidates_BP, 0)])
    scaled_BP = _scaled(relevance_BP, is_open_BP)
    likeness_BP = np.zeros((num_users, num_candidates))
    chosen_BK = np.full((num_users, min(k, num_candidates)), -1, dtype=np.int64)
    rows = np.arange(num_users)
    for place in range(chosen_BK.shape[1]):
        worth_BP = (1 - diversity_B[:, None]) * scaled_BP - diversity_B[:, None] * likeness_BP
        if place == 0:
            worth_BP = scaled_BP
        best_B = np.argmax(np.where(is_open_BP, worth_BP, -np.inf), axis=1)
        is_found_B = is_open_BP[rows, best_B]
        chosen_BK[is_found_B, place] = best_B[is_found_B]
        is_open_BP[rows, best_B] = False
        cosine_BP = np.einsum("bpd,bd->bp", vectors_BPD, vectors_BPD[rows, best_B])
        likeness_BP = cosine_BP if place == 0 else np.maximum(likeness_BP, cosine_BP)
    return chosen_BK


def _scaled(relevance_BP: NDArray[np.float32], is_candidate_BP: NDArray[np.bool_]) -> NDArray[np.float64]:
    lowest = np.min(relevance_BP, axis=1, where=is_candidate_BP, initial=np.inf)[:, None]
    highest = np.max(relevance_BP, axis=1, where=is_candidate_BP, initial=-np.inf)[:, None]
    span = np.where(highest > lowest, highest - lowest, 1.0)
    return np.where(is_candidate_BP, (relevance_BP - lowest) / span, 0.0).astype(np.float64)


def _unit(vectors_BPD: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors_BPD, axis=2, keepdims=True)
    lengths[lengths == 0] = 1
    unit: NDArray[np.float32] = (vectors_BPD / lengths).astype(np.float32, copy=False)
    return unit
