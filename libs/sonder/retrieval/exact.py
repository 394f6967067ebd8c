"""Exact nearest items and users: inner products in chunks, the best k of each row.

Shapes: U queries, I items, D width, k answers. float32 throughout; a chunk of scores takes at most CHUNK_BYTES.
Rule: ties go to the lower index, an excluded item scores -inf and never 0, and where fewer than k items are left the
answer is -1 with score -inf.
Limits: cost grows with U x I x D; ties are ties of the float32 product, whose last bit may differ between machines.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonder.history.timelines import Timelines
from sonder.retrieval.selection import select_top

CHUNK_BYTES = 32 << 20  # 512 to 1,024 rows on 10,000 items were fastest: the scores stay near the cache

Found = tuple[NDArray[np.int32], NDArray[np.float32]]


def top_items(
    queries_UD: NDArray[np.float32],
    items_ID: NDArray[np.float32],
    k: int,
    *,
    bias_I: NDArray[np.float32] | None = None,
    allowed_I: NDArray[np.bool_] | None = None,
    exclude: Timelines | None = None,
) -> Found:
    """Best k items of each query -> item_index int32 [U, k], scores float32 [U, k], best first.

    A score is the inner product, plus the item's `bias_I`. `allowed_I` limits the candidates; `exclude` holds one
    history per query, none of whose items is an answer.
    """
    _check(queries_UD, items_ID)
    for name, values in (("bias_I", bias_I), ("allowed_I", allowed_I)):
        if values is not None and values.shape != (len(items_ID),):
            raise ValueError(f"{name} has shape {values.shape}, expected ({len(items_ID)},)")
    if exclude is not None and exclude.num_users != len(queries_UD):
        raise ValueError(
            f"{exclude.num_users} histories to exclude, expected one for each of {len(queries_UD)} queries"
        )
    offset_I = np.zeros(len(items_ID), dtype=np.float32) if bias_I is None else bias_I.copy()
    if allowed_I is not None:
        offset_I[~allowed_I] = -np.inf
    items, offset = _tensor(items_ID), torch.from_numpy(offset_I)
    indices_UK = np.full((len(queries_UD), k), -1, dtype=np.int32)
    scores_UK = np.full((len(queries_UD), k), -np.inf, dtype=np.float32)
    for start, stop in chunks(len(queries_UD), len(items_ID)):
        scores = torch.addmm(offset, _tensor(queries_UD[start:stop]), items.T)
        if exclude is not None:
            mask_history(scores, exclude, start, stop)
        indices_UK[start:stop], scores_UK[start:stop] = select_top(scores, k)
    return indices_UK, scores_UK


def similar_users(
    query_QD: NDArray[np.float32],
    users_UD: NDArray[np.float32],
    k: int,
    *,
    exclude_rows: NDArray[np.int64] | None = None,
) -> Found:
    """Nearest k users of each query -> rows of `users_UD` int32 [Q, k], scores float32 [Q, k], best first.

    `exclude_rows` [Q] is the row that may not answer each query, the user's own one; -1 excludes none.
    """
    _check(query_QD, users_UD)
    if exclude_rows is not None and exclude_rows.shape != (len(query_QD),):
        raise ValueError(f"exclude_rows has shape {exclude_rows.shape}, expected ({len(query_QD)},)")
    users = _tensor(users_UD)
    rows_QK = np.full((len(query_QD), k), -1, dtype=np.int32)
    scores_QK = np.full((len(query_QD), k), -np.inf, dtype=np.float32)
    for start, stop in chunks(len(query_QD), len(users_UD)):
        scores = _tensor(query_QD[start:stop]) @ users.T
        if exclude_rows is not None:
            own = torch.from_numpy(exclude_rows[start:stop].astype(np.int64))
            asked = torch.nonzero(own >= 0).flatten()
            scores[asked, own[asked]] = -torch.inf
        rows_QK[start:stop], scores_QK[start:stop] = select_top(scores, k)
    return rows_QK, scores_QK


def chunks(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Ranges of rows whose float32 scores over all columns fit into CHUNK_BYTES, one row at least."""
    size = max(1, CHUNK_BYTES // (4 * max(1, num_columns)))
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def mask_history(scores_BI: Tensor, histories: Timelines, start: int, stop: int) -> None:
    """Set the known items of users start:stop to -inf, in place; row 0 of the scores is user `start`."""
    first, last = histories.offsets[start], histories.offsets[stop]
    rows = np.repeat(np.arange(stop - start), np.diff(histories.offsets[start : stop + 1]))
    items = histories.items[first:last]
    known = items >= 0
    scores_BI[torch.from_numpy(rows[known]), torch.from_numpy(items[known].astype(np.int64))] = -torch.inf


def _tensor(matrix: NDArray[np.float32]) -> Tensor:
    """The matrix as a tensor; copied only if strided or read-only (Arrow, Ray), of which torch warns."""
    return torch.from_numpy(np.require(matrix, requirements=["C", "W"]))


def _check(queries: NDArray[np.float32], others: NDArray[np.float32]) -> None:
    for name, matrix in (("queries", queries), ("candidates", others)):
        if matrix.ndim != 2 or matrix.dtype != np.float32:
            raise ValueError(f"{name} are {matrix.dtype} {matrix.shape}, expected a float32 matrix")
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} hold NaN or infinite values, expected finite vectors")
    if queries.shape[1] != others.shape[1]:
        raise ValueError(
            f"queries have width {queries.shape[1]}, candidates {others.shape[1]}: expected the same space"
        )
