"""The items of the synthetic world and how popular each is in each week.

Popularity inside a leaf is Zipf by rank times a curve of the item's age: it rises for about two weeks after the release
and settles at a quarter of its peak; before the release it is zero. Items of a leaf are dealt into lines of about six;
people stay with a line for several sessions, which is what a model of sequences can learn and a popularity list cannot.

Drawing an item is one lookup in a table of quantiles (item at quantile (m + 1/2) / M), so probabilities are multiples
of 1/M; `leaf_share` is read from the same tables and is therefore exact.
Legend: W weeks, I items (ordered by leaf, then line), C leaves, L lines, M quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.synthetic.config import DAY_MS, START, WorldConfig
from sonder.events.synthetic.identifiers import padded_ids
from sonder.events.synthetic.taxonomy import (
    ADJECTIVES,
    DEPARTMENT_PRICES,
    LEAVES,
    LEAVES_PER_DEPARTMENT,
    LINES,
    NOUNS,
    NUM_LEAVES,
)

ITEMS_PER_LINE = 6
ZIPF_EXPONENT = 1.0
LEAF_ZIPF_EXPONENT = 0.6
SHARE_OF_OLD_ITEMS = 0.6  # on sale when the log starts
MAX_AGE_WEEKS = 104
LINE_QUANTILES = 64


@dataclass(frozen=True)
class Catalogue:
    """Items in the order of the tables; `number` is what their id says."""

    leaf: NDArray[np.int32]  # [I]
    line: NDArray[np.int32]  # [I] counted over all leaves
    number: NDArray[np.int32]  # [I] by release: ids tell nothing but age
    released_week: NDArray[np.int32]  # [I] may be negative
    price: NDArray[np.float64]  # [I]
    leaf_weight: NDArray[np.float64]  # [C] popularity of the leaves, sums to 1
    noun: NDArray[np.int32]  # [I] which noun of the leaf
    adjective: NDArray[np.int32]  # [I]
    everywhere: NDArray[np.int32]  # [W, M] item at each quantile of the whole catalogue
    by_leaf: NDArray[np.int32]  # [W, C, M]
    by_line: NDArray[np.int32]  # [W, L, M]

    @property
    def num_items(self) -> int:
        return len(self.leaf)

    @cached_property
    def leaf_share(self) -> NDArray[np.float64]:
        """Share of each leaf in draws from `everywhere` [W, C]."""
        leaves = self.leaf[self.everywhere]
        counts = np.stack([np.bincount(week, minlength=NUM_LEAVES) for week in leaves])
        share: NDArray[np.float64] = counts / self.everywhere.shape[1]
        return share

    @cached_property
    def item_ids(self) -> pa.Array:
        return padded_ids("i", self.number, 6)

    def table(self) -> pa.Table:
        """item_id, category, title, price, released_at; by item_id."""
        first_line = self.line[np.searchsorted(self.leaf, np.arange(NUM_LEAVES))]
        titles = [
            f"{_line_name(line)} {ADJECTIVES[adjective]} {NOUNS[leaf][noun].capitalize()}"
            for leaf, line, adjective, noun in zip(
                self.leaf, self.line - first_line[self.leaf], self.adjective, self.noun, strict=True
            )
        ]
        start_us = int(START.timestamp()) * 1_000_000
        released_us = start_us + self.released_week.astype(np.int64) * (7 * DAY_MS * 1_000)
        table = pa.table(
            {
                Col.ITEM_ID: self.item_ids,
                Col.CATEGORY: pa.array(LEAVES).take(pa.array(self.leaf)),
                Col.TITLE: pa.array(titles),
                "price": pa.array(self.price),
                "released_at": pa.array(released_us).cast(TIMESTAMP_TYPE),
            }
        )
        return table.sort_by(Col.ITEM_ID)


def build_catalogue(config: WorldConfig) -> Catalogue:
    """The items of a world with their weekly popularity."""
    rng = config.generator(0)
    popularity = np.power(rng.permutation(NUM_LEAVES) + 1.0, -LEAF_ZIPF_EXPONENT, dtype=np.float64)
    leaf_weight: NDArray[np.float64] = popularity / popularity.sum()
    sizes = _leaf_sizes(leaf_weight, config.num_items)
    leaf = np.repeat(np.arange(NUM_LEAVES, dtype=np.int32), sizes)
    rank = np.arange(config.num_items) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    num_lines = np.maximum(1, sizes // ITEMS_PER_LINE)
    line = (np.repeat(np.cumsum(num_lines) - num_lines, sizes) + rank % num_lines[leaf]).astype(np.int32)
    order = np.lexsort((rank, line))
    leaf, rank, line = leaf[order], rank[order], line[order]

    is_first_of_line = rank < num_lines[leaf]  # there from the start: no line is ever empty
    is_old = is_first_of_line | (rng.random(config.num_items) < SHARE_OF_OLD_ITEMS)
    old_week = -rng.integers(0, MAX_AGE_WEEKS + 1, config.num_items)
    new_week = rng.integers(1, max(2, config.num_weeks), config.num_items)
    released_week = np.where(is_old, old_week, new_week).astype(np.int32)
    number = np.empty(config.num_items, dtype=np.int32)
    number[np.lexsort((rng.random(config.num_items), released_week))] = np.arange(config.num_items)

    age_WI = np.arange(config.num_weeks)[:, None] - released_week
    in_leaf = (rank + 1.0) ** -ZIPF_EXPONENT
    in_leaf /= np.bincount(leaf, in_leaf)[leaf]
    weight_WI = (leaf_weight[leaf] * in_leaf) * _age_curve(age_WI)
    median_price = np.asarray(DEPARTMENT_PRICES)[leaf // LEAVES_PER_DEPARTMENT]
    return Catalogue(
        leaf=leaf,
        line=line,
        number=number + 1,
        released_week=released_week,
        price=np.floor(median_price * np.exp(0.5 * rng.standard_normal(config.num_items))) + 0.99,
        leaf_weight=leaf_weight,
        noun=rng.integers(0, min(map(len, NOUNS)), config.num_items, dtype=np.int32),
        adjective=rng.integers(0, len(ADJECTIVES), config.num_items, dtype=np.int32),
        everywhere=_quantiles(weight_WI, np.zeros_like(leaf), _at_least(4 * config.num_items, 4096))[:, 0],
        by_leaf=_quantiles(weight_WI, leaf, _at_least(8 * int(sizes.max()), 256)),
        by_line=_quantiles(weight_WI, line, LINE_QUANTILES),
    )


def _age_curve(age_weeks: NDArray[np.int32]) -> NDArray[np.float64]:
    """Multiplier of popularity: 0 before the release, 1.2 in its week, 1.9 in the next two, then down to 0.4."""
    rise_and_fall = 0.4 + 1.6 * (age_weeks + 0.5) * np.exp(-np.maximum(age_weeks, 0) / 2)
    return np.where(age_weeks < 0, 0.0, rise_and_fall)


def _leaf_sizes(leaf_weight: NDArray[np.float64], num_items: int) -> NDArray[np.int64]:
    """Items per leaf [C]: by the root of the leaf's popularity, three at least."""
    spread = np.sqrt(leaf_weight) / np.sqrt(leaf_weight).sum()
    sizes: NDArray[np.int64] = 3 + np.floor(spread * (num_items - 3 * NUM_LEAVES)).astype(np.int64)
    sizes[np.argsort(-leaf_weight)[: num_items - int(sizes.sum())]] += 1
    return sizes


def _quantiles(weight_WI: NDArray[np.float64], group: NDArray[np.int32], num: int) -> NDArray[np.int32]:
    """Item at each of `num` quantiles of each group in each week [W, groups, num]; groups are contiguous."""
    is_last = np.append(group[1:] != group[:-1], True)
    middles = (np.arange(num) + 0.5) / num
    tables = []
    for weight_I in weight_WI:
        cumulative = np.cumsum(weight_I)
        ends = cumulative[is_last]
        starts = np.append(0.0, ends[:-1])
        targets = starts[:, None] + middles * (ends - starts)[:, None]
        tables.append(np.searchsorted(cumulative, targets.ravel(), side="right").reshape(targets.shape))
    return np.stack(tables).astype(np.int32)


def _at_least(wanted: int, floor: int) -> int:
    """A power of two: quantiles of neighbouring sizes share their grid."""
    return max(floor, 1 << (wanted - 1).bit_length())


def _line_name(index: int) -> str:
    series, name = divmod(int(index), len(LINES))
    return LINES[name] if series == 0 else f"{LINES[name]} {series + 1}"
