"""What the report says of everybody, counted bucket by bucket and added up.

A bucket holds whole users, so counts of users add up like those of events. `counted` makes the counts of one bucket, a
small JSON-able object; `Counts.of` adds those of any number of buckets and puts them into the report's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.evaluation.affinity import AffinityQuality
from sonder.evaluation.report_content import AffinityFacts, InterestFacts
from sonder.history.timelines import MICROSECONDS_PER_DAY

COUNTED = {  # columns of the two tables that are looked at
    "interests": ["user_id", "category", "weight", "state"],
    "affinities": ["level", "rank", "category", "population_share", "strength"],
}
FIRST_MONDAY = np.datetime64("1969-12-29", "D")  # of week 0: day 0 of 1970 was a Thursday


def counted(times_us: NDArray[np.int64], interests: pa.Table, affinities: pa.Table) -> dict[str, Any]:
    """Counts of one bucket: its event times, its INTEREST_SCHEMA and its AFFINITY_SCHEMA rows (columns COUNTED)."""
    numbers, events = np.unique((times_us // MICROSECONDS_PER_DAY + 3) // 7, return_counts=True)
    rows = pl.DataFrame(interests.select(COUNTED["interests"]))
    per_user = rows.drop_nulls("category").group_by("user_id", "category").agg(pl.col("weight").sum())
    categories = per_user.group_by("category").agg(pl.len(), pl.col("weight").cast(pl.Float64).sum())
    is_first = (pl.col("rank") == 1) & (pl.col("strength") > 0)
    top = (
        pl.DataFrame(affinities.select(COUNTED["affinities"]))
        .filter(pl.col("level") == 1)
        .group_by("category")
        .agg(pl.col("population_share").first(), is_first.sum(), (pl.col("strength") < 0).sum().alias("less"))
    )
    return {
        "weeks": [[int(number), int(count)] for number, count in zip(numbers, events, strict=True)],
        "users_with_interests": rows["user_id"].n_unique(),
        "interests": len(rows),
        "states": [list(row) for row in rows.group_by("state").len().iter_rows()],
        "categories": [list(row) for row in categories.iter_rows()],
        "affinities": [list(row) for row in top.iter_rows()],
    }


@dataclass(frozen=True)
class Counts:
    """Of all buckets: number of a week -> events; category -> users and sum of weights; category -> affinities."""

    weeks: Counter[int]
    states: Counter[str]
    num_users: int  # who have interests
    num_interests: int
    categories: Mapping[str, tuple[int, float]]
    affinities: Mapping[str, tuple[float, int, int]]  # share of the population, first of so many, less of so many

    @classmethod
    def of(cls, buckets: Iterable[Mapping[str, Any]]) -> Counts:
        """The sum of what `counted` says of each."""
        weeks: Counter[int] = Counter()
        states: Counter[str] = Counter()
        num_users = num_interests = 0
        categories: dict[str, tuple[int, float]] = {}
        affinities: dict[str, tuple[float, int, int]] = {}
        for bucket in buckets:
            weeks.update(dict(bucket["weeks"]))
            states.update(dict(bucket["states"]))
            num_users += bucket["users_with_interests"]
            num_interests += bucket["interests"]
            for name, users, weight in bucket["categories"]:
                before = categories.get(name, (0, 0.0))
                categories[name] = (before[0] + users, before[1] + weight)
            for name, share, first, less in bucket["affinities"]:
                _, was_first, was_less = affinities.get(name, (share, 0, 0))
                affinities[name] = (share, was_first + first, was_less + less)
        return cls(weeks, states, num_users, num_interests, categories, affinities)

    def events_per_week(self) -> list[tuple[str, int]]:
        """Events by ISO week, weeks without any included -> [(Monday, events)], oldest first."""
        if not self.weeks:
            return []
        numbers = range(min(self.weeks), max(self.weeks) + 1)
        return [(str(FIRST_MONDAY + 7 * number), self.weeks[number]) for number in numbers]

    def interests(self, num_categories: int = 12) -> InterestFacts:
        """Who has which categories, how strong on average, in which state."""
        means = [(name, users, weight / users) for name, (users, weight) in self.categories.items()]
        return InterestFacts(
            users=self.num_users,
            interests_per_user=self.num_interests / self.num_users if self.num_users else 0.0,
            top_categories=sorted(means, key=lambda row: (-row[1], -row[2], row[0]))[:num_categories],
            states=dict(sorted(self.states.items())),
            has_categories=bool(means),
        )

    def top_affinities(
        self,
        qualities: Sequence[AffinityQuality],
        *,
        is_learned: bool,
        horizon_days: float,
        num_categories: int = 12,
    ) -> AffinityFacts:
        """Of the top level: how many users a category comes first for, how many want it less than others."""
        rows = [(name, *told) for name, told in self.affinities.items()]
        rows.sort(key=lambda row: (-row[2], row[0]))
        return AffinityFacts(rows[:num_categories], qualities, is_learned, horizon_days)
