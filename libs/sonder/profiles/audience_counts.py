"""Evaluate rules over profiles and count: size, unknown, overlap, and a sample; whole or from a random sample.

Shapes: U profiles, R rules. The first rule is the one that is previewed, the others are saved audiences.
Sizes of whole populations are exact. A size from a sample of n of N users carries Wilson's 95 % interval for a share,
scaled to N (finite populations make it narrower; that is left out, so the interval is cautious).
The sample of members is a draw by digest of the user id: the same users whenever and in how many parts it is asked for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from sonder.core.ids import unit_interval
from sonder.history.timelines import Timelines
from sonder.profiles.audience_fields import field_columns
from sonder.segments.rules.rule import Rule, fields_of_rules

SAMPLE_KEY = "sonder/audience/sample/1/"
_Z = 1.96  # of a 95 % interval


def evaluate(
    rules: Sequence[Rule], profiles: pa.Table, timelines: Timelines | None, actions: Sequence[str]
) -> pl.DataFrame:
    """Whether each rule holds for each profile: a frame [U] of Boolean columns "0", "1", …; null where unknown."""
    columns = field_columns(fields_of_rules(rules), profiles, timelines, actions)
    return columns.select(rule.expression().alias(str(number)) for number, rule in enumerate(rules))


@dataclass(frozen=True)
class Counts:
    """What a preview needs of some users; counts of disjoint users add up."""

    num_users: int = 0
    size: int = 0
    num_unknown: int = 0  # neither in nor out: a value that the rule reads is unknown
    saved_sizes: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()  # in both: this rule and the saved one
    sample: tuple[tuple[float, str], ...] = ()  # draw, user_id: the members with the smallest draws

    @classmethod
    def of(cls, held: pl.DataFrame, user_ids: pa.Array, *, num_sampled: int) -> Counts:
        """Count a frame of `evaluate`."""
        is_in = held.select(pl.all().fill_null(False))
        first = is_in.to_series(0)
        rows = np.flatnonzero(first.to_numpy())
        members = pl.Series(user_ids.take(pa.array(rows)).to_pylist(), dtype=pl.String)
        draws = unit_interval(members, SAMPLE_KEY)
        chosen = np.argsort(draws, kind="stable")[:num_sampled]
        return cls(
            num_users=held.height,
            size=len(rows),
            num_unknown=held.to_series(0).null_count(),
            saved_sizes=tuple(int(column.sum()) for column in is_in.iter_columns())[1:],
            shared=tuple(int((column & first).sum()) for column in is_in.iter_columns())[1:],
            sample=tuple(zip(draws[chosen].tolist(), members.gather(chosen).to_list(), strict=True)),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts], *, num_sampled: int) -> Counts:
        """Counts of all users together."""
        counts = list(parts)
        return cls(
            num_users=sum(part.num_users for part in counts),
            size=sum(part.size for part in counts),
            num_unknown=sum(part.num_unknown for part in counts),
            saved_sizes=tuple(map(sum, zip(*(part.saved_sizes for part in counts), strict=True))),
            shared=tuple(map(sum, zip(*(part.shared for part in counts), strict=True))),
            sample=tuple(heapq.nsmallest(num_sampled, (entry for part in counts for entry in part.sample))),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Counts:
        lists = {name: tuple(content[name]) for name in ("saved_sizes", "shared")}
        sample = tuple((draw, user_id) for draw, user_id in content["sample"])
        return cls(**{**content, **lists, "sample": sample})


def preview_of(counts: Counts, *, num_profiles: int, saved: Sequence[str]) -> dict[str, Any]:
    """The answer of a preview: sizes among `num_profiles` users; `saved` names the audiences of the counts."""
    asked, exact = counts.num_users, counts.num_users >= num_profiles
    share = counts.size / asked if asked else 0.0
    low, high = (share, share) if exact else wilson_interval(counts.size, asked)
    overlaps = [
        {
            "audience": name,
            "size": _scaled(size, asked, num_profiles),
            "shared": _scaled(shared, asked, num_profiles),
            "share_of_this": shared / counts.size if counts.size else 0.0,
            "share_of_that": shared / size if size else 0.0,
        }
        for name, size, shared in zip(saved, counts.saved_sizes, counts.shared, strict=True)
    ]
    return {
        "num_profiles": num_profiles,
        "num_evaluated": asked,
        "is_exact": exact,
        "size": _scaled(counts.size, asked, num_profiles),
        "size_low": max(counts.size, math.floor(low * num_profiles)),
        "size_high": counts.size if exact else math.ceil(high * num_profiles),
        "share": share,
        "num_unknown": _scaled(counts.num_unknown, asked, num_profiles),
        "overlap": overlaps,
        "sample": [user_id for _, user_id in counts.sample],
    }


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _scaled(count: int, asked: int, num_profiles: int) -> int:
    return round(count / asked * num_profiles) if asked else 0
