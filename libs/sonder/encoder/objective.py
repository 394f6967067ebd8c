"""What each event shall predict, against what, and the loss.

Shapes: N tokens, G goals, M predictions of a batch, H of these beside an unwanted item, K shared negatives, D width,
I items.
next_action        the next wanted item after the event
all_action         wanted items of a window, from the one event of each user that a whole window follows
dense_all_action   a wanted item of the window after the event, drawn anew each epoch (PinnerFormer, 2022)
Negatives are drawn half uniformly, half by popularity (what in-batch negatives are in expectation, without their
coupling), once for the whole batch, so the loss is one matrix product. A drawn item stands for 1 / P(drawn) of its
kind (logQ correction); an item that the event may yet have to predict is never its negative.
A prediction counts as much as the action it wants weighs (`events.action_weights`). Where the user will also say what
he does not want (a hide), the wanted item has to win against that one too (a pairwise logistic term, BPR, 2009), which
counts as much as the hide weighs.
Limits: with every item drawn this is the full softmax, exactly; below, its log-partition is slightly underestimated.
P(drawn) comes from exact counts of all items, eight bytes each: a sketch would save nothing beside the item table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sonder.encoder.batching import Tokens
from sonder.encoder.specification import EncoderSpec

Cells = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows, ascending, and slots
Index = NDArray[np.signedinteger[Any]]  # int32 where that is enough: half of the memory of a trainer is such
MOST_AT_ONCE = 16  # goals that one event predicts in an epoch under `all_action`
_BLOCK_TOKENS = 1 << 20  # for which goals are found and drawn at once: what that takes is not the size of the log
_CHUNK_CELLS = 1 << 19  # scores of the loss that are held at once: 2 MiB stay in the processor's cache


@dataclass(frozen=True)
class Draws:
    """The goals that were drawn for each token in one epoch: `places[offsets[n]:offsets[n + 1]]` of token n."""

    offsets: Index  # [N + 1]
    places: Index  # into the items of the goals

    def at(self, positions_C: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cells, ascending, that predict, and the place of each one's goal [M]; position -1 predicts nothing."""
        inside_C = np.maximum(positions_C, 0)
        num_C = np.where(positions_C >= 0, self.offsets[inside_C + 1] - self.offsets[inside_C], 0)
        cells_M, within_M = _spread(num_C)
        return cells_M, self.places[self.offsets[positions_C[cells_M]] + within_M].astype(np.int64)


@dataclass(frozen=True)
class Goals:
    """What the user of token n does later: `items[firsts[n]:stops[n]]`; nothing if the run is empty."""

    items: NDArray[np.int32]  # [G] user by user, oldest first
    weights: NDArray[np.float32]  # [G] of their actions, without the sign
    firsts: Index  # [N]
    stops: Index  # [N]
    most: int = 1  # draws for a token

    def ends(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """One past the newest token of each user that has a goal [U]: later ones need not be computed in training."""
        past_goals = np.flatnonzero(np.concatenate(([True], self.stops > self.firsts)))  # 0 first, for who has none
        newest_U = past_goals[np.searchsorted(past_goals, offsets[1:], side="right") - 1]
        ends: NDArray[np.int64] = np.maximum(newest_U, offsets[:-1])
        return ends

    def draw(self, random: np.random.Generator) -> Draws:
        """One goal of each token that has any, or up to `most` of them."""
        num_N = self.stops - self.firsts
        offsets = running_sum(np.minimum(num_N, self.most), most=len(num_N) * self.most)
        places = np.empty(offsets[-1], dtype=self.firsts.dtype)
        for start in range(0, len(num_N), _BLOCK_TOKENS):
            stop = min(start + _BLOCK_TOKENS, len(num_N))
            tokens, _ = _spread(np.minimum(num_N[start:stop], self.most))
            tokens += start
            drawn = (random.random(len(tokens)) * num_N[tokens]).astype(np.int64)
            places[offsets[start] : offsets[stop]] = self.firsts[tokens] + drawn
        return Draws(offsets, places)

    def of(self, positions_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All goals of some tokens as pairs (row of the token, item)."""
        rows, within = _spread(self.stops[positions_M] - self.firsts[positions_M])
        return rows, self.items[self.firsts[positions_M][rows] + within]


def set_goals(tokens: Tokens, spec: EncoderSpec, *, unwanted: bool = False) -> Goals:
    """Find what every token shall predict, or (`unwanted`) what it shall not."""
    weights = np.asarray([*spec.action_weights, 0.0], dtype=np.float32)
    is_goal = (weights[tokens.actions] < 0) & (tokens.items < spec.num_items) if unwanted else tokens.is_wanted
    before = running_sum(is_goal, most=len(is_goal))
    firsts = before[1:]
    if spec.objective == "next_action":
        stops = np.minimum(firsts + 1, np.repeat(before[tokens.offsets[1:]], tokens.lengths))
    else:
        stops = np.empty_like(firsts)
        for start, stop in _blocks(tokens.offsets):
            part = slice(tokens.offsets[start], tokens.offsets[stop])
            offsets = tokens.offsets[start : stop + 1] - tokens.offsets[start]
            stops[part] = before[part.start + _window_stops(tokens.times_us[part], offsets, spec.window_us)]
        np.maximum(stops, firsts, out=stops)
    if spec.objective == "all_action":
        stops = np.where(_before_a_window(tokens, spec.window_us, stops > firsts), stops, firsts)
    return Goals(
        items=tokens.items[is_goal],
        weights=np.abs(weights[tokens.actions[is_goal]]),
        firsts=firsts,
        stops=stops,
        most=MOST_AT_ONCE if spec.objective == "all_action" else 1,
    )


def _before_a_window(tokens: Tokens, window_us: int, has_goal_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Each user's newest token with goals that a whole window follows; where none is, his newest with goals [N]."""
    is_whole = tokens.times_us <= tokens.times_us.max(initial=0) - window_us
    index_N = np.arange(1, len(has_goal_N) + 1)
    chosen = np.zeros(len(has_goal_N) + 1, dtype=bool)
    newest_U = np.zeros(tokens.num_users, dtype=np.int64)
    for mask in (has_goal_N & is_whole, has_goal_N):
        newest = np.maximum.accumulate(np.concatenate(([0], np.where(mask, index_N, 0))))[tokens.offsets[1:]]
        newest_U = np.where(newest_U > 0, newest_U, np.where(newest > tokens.offsets[:-1], newest, 0))
    chosen[newest_U] = True
    return chosen[1:]


def running_sum(numbers_N: NDArray[Any], *, most: int) -> Index:
    """Sum of the numbers before each place, and of all [N + 1]; it does not pass `most`."""
    width: type[np.signedinteger[Any]] = np.int32 if most <= np.iinfo(np.int32).max else np.int64
    sums = np.zeros(len(numbers_N) + 1, dtype=width)
    np.cumsum(numbers_N, dtype=width, out=sums[1:])
    return sums


def _blocks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of whole users of at most _BLOCK_TOKENS; who has more is a run of his own."""
    start, num_users = 0, len(offsets) - 1
    while start < num_users:
        stop = int(np.searchsorted(offsets, offsets[start] + _BLOCK_TOKENS, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _spread(num_R: Index) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows repeated as often as told, ascending, and the count within each row."""
    rows = np.repeat(np.arange(len(num_R)), num_R)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(num_R) - num_R, num_R)


def _window_stops(times_us: NDArray[np.int64], offsets: NDArray[np.int64], window_us: int) -> NDArray[np.int64]:
    """First token of the same user later than each token's time plus the window, to the millisecond [N]."""
    if len(times_us) == 0:
        return np.zeros(0, dtype=np.int64)
    times = (times_us - times_us.min()) // 1000
    window = window_us // 1000
    users_N = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = users_N * (int(times.max()) + window + 2) + times  # ascending over all users
    stops: NDArray[np.int64] = np.searchsorted(keys, keys + window, side="right")
    return stops


@dataclass(frozen=True)
class Negatives:
    """K distinct items, and the logarithm of the probability with which each was drawn."""

    items: NDArray[np.int64]  # [K] ascending
    log_q: NDArray[np.float32]  # [K]


class NegativeSampler:
    """Draws the shared negatives of a batch."""

    def __init__(
        self, target_counts_I: NDArray[np.int64], drawn_from: NDArray[np.int32], num: int, *, corrects: bool = True
    ) -> None:
        """`drawn_from` holds an item once for each time that it was wanted; `corrects` False leaves logQ out."""
        self.pool = np.flatnonzero(target_counts_I)
        self.drawn_from = drawn_from
        share = target_counts_I / max(int(target_counts_I.sum()), 1)
        self.draws_all = num >= len(self.pool)
        self.half = max(num // 2, 1)
        missed = self.half * (np.log1p(-1 / max(len(self.pool), 2)) + np.log1p(-np.minimum(share, 1 - 1e-9)))
        self.log_q = np.log(-np.expm1(missed)).astype(np.float32) * np.float32(corrects)

    def draw(self, random: np.random.Generator) -> Negatives:
        if self.draws_all:
            return Negatives(items=self.pool, log_q=np.zeros(len(self.pool), dtype=np.float32))
        uniform = self.pool[random.integers(0, len(self.pool), self.half)]
        popular = self.drawn_from[random.integers(0, len(self.drawn_from), self.half)]
        items = np.unique(np.concatenate([uniform, popular]).astype(np.int64))
        return Negatives(items=items, log_q=self.log_q[items])


def own_positives(negatives: Negatives, rows: NDArray[np.int64], items: NDArray[np.int32]) -> Cells:
    """Cells (row, slot) of the score matrix that hold a positive of that row; `rows` ascends."""
    slots = np.searchsorted(negatives.items, items)
    inside = np.minimum(slots, len(negatives.items) - 1)
    is_drawn = negatives.items[inside] == items
    return rows[is_drawn], inside[is_drawn]


@dataclass(frozen=True)
class Popularity:
    """Log popularity of the candidates at each point in time, and its learned weight (0 to 2)."""

    weight: Tensor  # []
    points_M: Tensor  # row of `of_negatives_PK` that holds at the time of each prediction
    of_positives_M: Tensor
    of_negatives_PK: Tensor


def sampled_softmax(
    states_MD: Tensor,
    positives_MD: Tensor,
    negatives_KD: Tensor,
    log_q_K: Tensor,
    cells: Cells,
    scale: Tensor,
    popularity: Popularity,
    weights_M: Tensor,
) -> Tensor:
    """Weighted mean of -log softmax of each positive among itself and the negatives.

    A score is `scale` times the cosine plus the weighted log popularity at the time of the event. The vectors are unit
    vectors and log popularity is negative, so no score passes `scale`: it serves as the maximum that keeps exp()
    finite. `cells` are the (row, slot) pairs that do not count.
    """
    hot_MD = states_MD * scale
    scores_M = (hot_MD * positives_MD).sum(dim=-1) + popularity.weight * popularity.of_positives_M - scale.detach()
    bias_K = -log_q_K - scale.detach()
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        hot_MD,
        negatives_KD,
        scores_M,
        bias_K,
        cells,
        popularity.weight,
        popularity.of_negatives_PK,
        popularity.points_M,
        weights_M / weights_M.mean(),
    )
    return loss


def loses_to_unwanted(
    states_HD: Tensor, wanted_HD: Tensor, unwanted_HD: Tensor, scale: Tensor, weights_H: Tensor
) -> Tensor:
    """Weighted sum of -log of the probability that the wanted item is liked better than the unwanted one."""
    lead_H = scale * (states_HD * (wanted_HD - unwanted_HD)).sum(dim=-1)
    return (functional.softplus(-lead_H) * weights_H).sum()


class _SampledSoftmax(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows: the score matrix never leaves the cache.

    Autograd's own route writes and reads the M x K scores about eight times; on two cores that costs five times the
    matrix products themselves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hot_MD: Tensor,
        negatives_KD: Tensor,
        scores_M: Tensor,
        bias_K: Tensor,
        cells: Cells,
        weight: Tensor,
        popularity_PK: Tensor,
        points_M: Tensor,
        weights_M: Tensor,
    ) -> Tensor:
        M, K = hot_MD.shape[0], negatives_KD.shape[0]
        step = min(max(_CHUNK_CELLS // K, 1), M)
        rows, slots = cells
        positive_M = scores_M.exp()
        partition_M = torch.empty_like(scores_M)
        to_hot_MD, to_negatives_KD = torch.empty_like(hot_MD), torch.zeros_like(negatives_KD)
        buffer = hot_MD.new_empty(step, K)
        bias_PK = popularity_PK * weight + bias_K
        popular_M = torch.empty_like(scores_M)  # expected log popularity of the negatives, not yet divided
        for start in range(0, M, step):
            stop = min(start + step, M)
            part = slice(start, stop)
            expected = torch.index_select(bias_PK, 0, points_M[part], out=buffer[: stop - start])
            expected.addmm_(hot_MD[part], negatives_KD.T).exp_()
            low, high = np.searchsorted(rows, (start, stop))
            own = torch.from_numpy(np.stack([rows[low:high] - start, slots[low:high]])).to(expected.device)
            expected[own[0], own[1]] = 0
            partition_M[part] = expected.sum(dim=1) + positive_M[part]
            popular_M[part] = _expected_popularity(expected, popularity_PK, points_M[part])
            torch.mm(expected, negatives_KD, out=to_hot_MD[part])
            divisor_M1 = (partition_M[part] / weights_M[part])[:, None]
            to_hot_MD[part] /= divisor_M1
            to_negatives_KD.addmm_(expected.T, hot_MD[part] / divisor_M1)
        to_weight = (popular_M / (partition_M / weights_M)).sum()
        to_scores_M = (positive_M / partition_M - 1) * weights_M
        ctx.save_for_backward(to_hot_MD, to_negatives_KD, to_scores_M, to_weight)
        return ((partition_M.log() - scores_M) * weights_M).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_hot_MD, to_negatives_KD, to_scores_M, to_weight = ctx.saved_tensors
        share = upstream / len(to_scores_M)
        return (
            to_hot_MD * share,
            to_negatives_KD * share,
            to_scores_M * share,
            None,
            None,
            to_weight * share,
            None,
            None,
            None,
        )


def _expected_popularity(expected_mK: Tensor, popularity_PK: Tensor, points_m: Tensor) -> Tensor:
    """Row-wise sum of expected x log popularity, as one product with all points: they are few."""
    return (expected_mK @ popularity_PK.T).gather(1, points_m[:, None])[:, 0]
