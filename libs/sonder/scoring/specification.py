"""Which features a model reads, in which order, and how each is said in plain words.

A specification is fixed when the heads are trained and travels with them as JSON; features.py executes it, in training,
in batch and online. Actions and categories are kept by name, so that a later vocabulary with more of them gives the
same columns. The rest is derived: windows are the days of WINDOWS_DAYS that fit into the log before the cutoff it is
derived at, categories the top level of the category path, the TOP_CATEGORIES with most events before that cutoff.

`settings` is what the floors beside this one decided before the same cutoff (lifecycle thresholds, interest settings):
carried with the columns, so that training and serving ask them alike, and read only by profiles.user_features.
What a user *is* (the attributes of the user table) is never a column: a table of today has no history, so it cannot
say what was known at a cutoff.
Limits: an excluded category has no column, and its items count in none; the embedding and the interests still come
from all items.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.scoring.columns import EMBEDDING_DRIVER, Column, describe

__all__ = [
    "EMBEDDING_DRIVER",
    "MAX_ACTIONS",
    "TOP_CATEGORIES",
    "WINDOWS_DAYS",
    "BoundSpec",
    "FeatureSpec",
    "bind",
    "derive_spec",
    "top_categories",
]

VERSION = 2  # of the columns: heads that were trained on others cannot read these
WINDOWS_DAYS = (1, 3, 7, 14, 30, 60, 90, 180, 365)
SHORT_DAYS, LONG_DAYS, RECENT_DAYS = 7, 90, 30  # the widest windows up to these are compared
MAX_ACTIONS = 16
TOP_CATEGORIES = 16


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides the columns of a feature matrix: the plain ones, then interests, then the embedding."""

    windows_days: tuple[int, ...]  # ascending
    actions: tuple[str, ...]
    categories: tuple[str, ...]
    has_values: bool
    embedding_dim: int
    states: tuple[str, ...] = ()  # of the lifecycle; none: no such columns
    reads_interests: bool = False
    excluded_categories: tuple[str, ...] = ()  # paths; what is at or below one counts in no category
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """(family, description) of each column [F], in the order of features.compute_features."""
        return describe(self)

    @cached_property
    def num_features(self) -> int:
        return len(self.columns)

    @property
    def num_plain(self) -> int:
        """Columns before the embedding."""
        return self.num_features - self.embedding_dim

    @property
    def trend_days(self) -> tuple[int, ...]:
        """Windows that can be compared with as many days before them."""
        return tuple(days for days in self.windows_days if 2 * days in self.windows_days)

    @property
    def compared_days(self) -> tuple[int, ...]:
        """A short and a long window; one of them, or none, where the log is young."""
        return tuple(dict.fromkeys((*self._widest(SHORT_DAYS), *self._widest(LONG_DAYS))))

    @property
    def recent_days(self) -> tuple[int, ...]:
        """The one window that the mix of categories is asked for beside ever; none where the log is young."""
        return self._widest(RECENT_DAYS)

    @property
    def compared_actions(self) -> tuple[str, ...]:
        """Actions that have a share among all events; of a single action it says nothing."""
        return self.actions if len(self.actions) > 1 else ()

    def _widest(self, most_days: int) -> tuple[int, ...]:
        return tuple(days for days in self.windows_days if days <= most_days)[-1:]

    def without_embedding(self) -> FeatureSpec:
        """The columns that need no item vectors: without the interests too, which are made of them."""
        return replace(self, embedding_dim=0, reads_interests=False)

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FeatureSpec:
        """The inverse of `to_dict`; ArtefactMismatch for columns of another version."""
        if content.get("version") != VERSION:
            raise ArtefactMismatch(
                f"Score heads read version {content.get('version', 1)} of the features",
                expected=f"version {VERSION}",
                do="`sonder build` trains them again.",
            )
        lists = ("windows_days", "actions", "categories", "states", "excluded_categories")
        fields: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in content.items()}
        del fields["version"]
        return cls(**fields)


@dataclass(frozen=True)
class BoundSpec:
    """A specification with its names resolved against a vocabulary; made once, used for every batch."""

    spec: FeatureSpec
    action_columns: NDArray[np.int64]  # [actions of the vocabulary + 1] place in spec.actions, else len(spec.actions)
    item_categories: NDArray[np.int64]  # [I + 1] place in spec.categories, else len(spec.categories)
    day_bands: NDArray[np.int64]  # [longest window + 1] first window that holds the day, W for none


def bind(spec: FeatureSpec, vocabulary: Vocabulary) -> BoundSpec:
    """Resolve names; the last row of each table is read by the index -1, unknown."""
    places = {name: place for place, name in enumerate(spec.actions)}
    actions = [places.get(name, len(places)) for name in vocabulary.actions]
    named = top_categories(vocabulary, excluded=spec.excluded_categories)
    found = pc.index_in(named, value_set=pa.array(spec.categories, pa.string()))
    categories = found.fill_null(len(spec.categories)).to_numpy(zero_copy_only=False).astype(np.int64)
    days = np.arange(max(spec.windows_days, default=0) + 1)
    return BoundSpec(
        spec=spec,
        action_columns=np.array([*actions, len(places)], dtype=np.int64),
        item_categories=np.append(categories, len(spec.categories)),
        day_bands=np.searchsorted(np.array(spec.windows_days, dtype=np.int64), days, side="right"),
    )


def derive_spec(
    timelines: Timelines,
    vocabulary: Vocabulary,
    *,
    first_us: int,
    cutoff_us: int,
    embedding_dim: int,
    states: Collection[str] = (),
    reads_interests: bool = False,
    excluded_categories: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> FeatureSpec:
    """Choose the columns from the log before `cutoff_us`; `timelines` may be a sample of its users."""
    history = timelines.before(cutoff_us)
    span_days = (cutoff_us - first_us) / MICROSECONDS_PER_DAY
    action_counts = np.bincount(history.actions[history.actions >= 0], minlength=len(vocabulary.actions))
    common = sorted(np.argsort(-action_counts, kind="stable")[:MAX_ACTIONS].tolist())
    excluded = tuple(sorted({path.strip("/") for path in excluded_categories}))
    return FeatureSpec(
        windows_days=tuple(days for days in WINDOWS_DAYS if days < span_days),
        actions=tuple(vocabulary.actions[index] for index in common if action_counts[index]),
        categories=_common_categories(history, vocabulary, excluded),
        has_values=bool(np.isfinite(history.values).any()),
        embedding_dim=embedding_dim,
        states=tuple(states),
        reads_interests=reads_interests,
        excluded_categories=excluded,
        settings=dict(settings or {}),
    )


def top_categories(vocabulary: Vocabulary, *, excluded: Collection[str] = ()) -> pa.Array:
    """First level of each item's category path [I]; null without one, and at or below an excluded path."""
    paths = vocabulary.items.column(Col.CATEGORY).combine_chunks().cast(pa.string())
    top = pc.list_element(pc.split_pattern(paths, "/", max_splits=1), 0)
    closed = pc.binary_join_element_wise(paths, "", "/")  # so that `garden` does not exclude `gardening`
    for path in excluded:
        top = pc.if_else(pc.starts_with(closed, f"{path}/").fill_null(False), pa.scalar(None, pa.string()), top)
    return top


def _common_categories(history: Timelines, vocabulary: Vocabulary, excluded: Collection[str]) -> tuple[str, ...]:
    """The top-level categories with most events, most first; of equals the first by name."""
    per_item = np.bincount(history.items[history.items >= 0], minlength=vocabulary.num_items)
    table = pa.table({"category": top_categories(vocabulary, excluded=excluded), "events": per_item})
    counted = table.group_by("category").aggregate([("events", "sum")])
    counted = counted.filter(pc.and_(pc.is_valid(counted["category"]), pc.greater(counted["events_sum"], 0)))
    ordered = counted.sort_by([("events_sum", "descending"), ("category", "ascending")])
    return tuple(ordered["category"].to_pylist()[:TOP_CATEGORIES])
