"""The best k columns of each row of scores, always the same ones.

Shapes: B rows, I columns, k answers. A tie is broken by the lower column, a column at -inf is never an answer.
`torch.topk` alone is fast but picks any of the tied columns: its k + 1 best values tell in which rows a tie crosses
the k-th place, and only those rows are settled again.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def select_top(scores_BI: Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Columns and scores of the k best, best first -> int32 [B, k], float32 [B, k]; -1 and -inf where none is left."""
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    num_rows, num_columns = scores_BI.shape
    columns_BK = np.full((num_rows, k), -1, dtype=np.int32)
    best_BK = np.full((num_rows, k), -np.inf, dtype=np.float32)
    width = min(k, num_columns)
    if num_rows == 0 or width == 0:
        return columns_BK, best_BK
    found = torch.topk(scores_BI, min(k + 1, num_columns), dim=1)
    chosen = found.indices[:, :width]
    if num_columns > width:
        last, next_best = found.values[:, width - 1], found.values[:, width]
        tied = torch.nonzero((last == next_best) & (last > -torch.inf)).flatten()
        if len(tied):
            chosen[tied] = _settle(scores_BI[tied], last[tied], width)
    values = scores_BI.gather(1, chosen).numpy()
    order = np.lexsort((chosen.numpy(), -values), axis=1)
    columns_BK[:, :width] = np.take_along_axis(chosen.numpy(), order, axis=1)
    best_BK[:, :width] = np.take_along_axis(values, order, axis=1)
    columns_BK[best_BK == -np.inf] = -1
    return columns_BK, best_BK


def _settle(scores_BI: Tensor, last_B: Tensor, width: int) -> Tensor:
    """All columns above the last place's score, then the lowest ones at it -> [B, width] in column order."""
    above = scores_BI > last_B[:, None]
    level = scores_BI == last_B[:, None]
    free = width - above.sum(dim=1, keepdim=True)
    taken = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= free))
    return torch.nonzero(taken)[:, 1].view(len(scores_BI), width)
