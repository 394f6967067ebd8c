"""How well the held-out users' wanted items are ranked among all items: the number that decides when training ends.

Shapes: V held-out users, I items.
Metrics: HR@10, at least one wanted item of the user in the top 10; NDCG@10, binary, over distinct wanted items. Items
without a vector are not ranked. Full ranking, no sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonder.encoder.batching import Tokens, tokenise
from sonder.encoder.inference import embed_tokens
from sonder.encoder.model import UserEncoder
from sonder.encoder.newest import NewestStates
from sonder.encoder.peers import Peers
from sonder.encoder.specification import EncoderSpec
from sonder.history.cutoffs import Split

TOP = 10
_BLOCK_CELLS = 1 << 23  # scores held at once: 32 MiB
_BLOCK_ITEMS = 1 << 16  # of a large catalogue, one block after the other


@dataclass(frozen=True)
class Exam:
    """What the held-out users of this worker are asked."""

    tokens: Tokens
    targets: NDArray[np.int64]  # distinct (user row * I + item), ascending
    seen: NDArray[np.int64]  # same, of the readable history; empty if seen items are ranked too
    num_targets: NDArray[np.int64]  # [V]

    @classmethod
    def of(cls, split: Split, spec: EncoderSpec) -> Exam:
        def cells(items: NDArray[np.int32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
            known = items >= 0
            return np.unique(rows[known] * spec.num_items + items[known])

        targets = cells(split.targets.items, split.targets.user_rows)
        seen = cells(split.history.items, split.history.user_rows) if spec.excludes_seen else targets[:0]
        targets = np.setdiff1d(targets, seen)
        num_targets = np.bincount(targets // max(spec.num_items, 1), minlength=split.history.num_users)
        return cls(tokenise(split.history, spec), targets, seen, num_targets)


def examine(
    model: UserEncoder,
    spec: EncoderSpec,
    exam: Exam,
    is_trained_I: NDArray[np.bool_],
    peers: Peers,
    *,
    log_shares_I: Tensor,
) -> dict[str, float]:
    """Metrics over the held-out users of all workers; empty if there are none."""
    top_VK = top_of_exam(model, spec, exam, is_trained_I, log_shares_I)
    rows_V = np.flatnonzero(exam.num_targets)
    found_VK = top_VK[rows_V]
    hits_VK = np.isin(rows_V[:, None] * spec.num_items + found_VK, exam.targets) & (found_VK >= 0)
    discounts_K = 1 / np.log2(np.arange(TOP) + 2)
    ideal_V = np.cumsum(discounts_K)[np.minimum(exam.num_targets[rows_V], TOP) - 1]
    ndcg_V = (hits_VK * discounts_K).sum(axis=1) / ideal_V
    total = peers.sum(np.asarray([len(rows_V), hits_VK.any(axis=1).sum(), ndcg_V.sum()], dtype=np.float64))
    if total[0] == 0:
        return {}
    return {"hr_at_10": float(total[1] / total[0]), "ndcg_at_10": float(total[2] / total[0])}


def top_of_exam(
    model: UserEncoder, spec: EncoderSpec, exam: Exam, is_trained_I: NDArray[np.bool_], log_shares_I: Tensor
) -> NDArray[np.int64]:
    """The ten best items of each held-out user [V, 10]; -1 where a list is shorter."""
    queries_VD = torch.from_numpy(embed_tokens(NewestStates(model, spec.max_length), spec, exam.tokens)).to(
        model.device
    )
    hidden_I, log_shares_I = torch.from_numpy(~is_trained_I).to(model.device), log_shares_I.to(model.device)
    best_VK = torch.full((len(queries_VD), TOP), -torch.inf, device=model.device)
    top_VK = torch.full((len(queries_VD), TOP), -1, dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        for first in range(0, spec.num_items, _BLOCK_ITEMS):
            items_DC = model.item_vectors(first, min(first + _BLOCK_ITEMS, spec.num_items)).T.contiguous()
            num = items_DC.shape[1]
            bias_C, hidden_C = model.item_bias(log_shares_I[first : first + num]), hidden_I[first : first + num]
            seen_rows, seen_items = np.divmod(exam.seen, spec.num_items)
            is_here = (seen_items >= first) & (seen_items < first + num)
            seen = seen_rows[is_here] * num + seen_items[is_here] - first  # ascending, as exam.seen is
            step = max(_BLOCK_CELLS // num, 1)
            for start in range(0, len(queries_VD), step):
                stop = min(start + step, len(queries_VD))
                scores = torch.addmm(bias_C, queries_VD[start:stop], items_DC)
                low, high = np.searchsorted(seen, np.asarray([start, stop]) * num)
                scores.view(-1)[torch.from_numpy(seen[low:high] - start * num).to(model.device)] = -torch.inf
                scores.masked_fill_(hidden_C, -torch.inf)
                best, places = scores.topk(min(TOP, num), dim=1)
                best = torch.cat([best_VK[start:stop], best], dim=1)
                items = torch.cat([top_VK[start:stop], places + first], dim=1)
                best_VK[start:stop], order = best.topk(TOP, dim=1)
                top_VK[start:stop] = items.gather(1, order)
    return top_VK.masked_fill_(best_VK == -torch.inf, -1).cpu().numpy()
