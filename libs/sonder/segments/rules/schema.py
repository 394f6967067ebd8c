"""Which fields a rule may read, and which names a release knows for them.

lifecycle, cluster                  text
since_days                          days in the lifecycle state, before as_of
recency_days, tenure_days           days since the last and the first event, before as_of
first_seen, last_seen               dates, compared with 2026-01-31 (its midnight in UTC)
active_days, num_events             of the lifecycle's window; of the whole history
num_interests, is_cold
score.NAME, score.'TASK/CATEGORY'   calibrated probability, or expected amount
attribute.NAME                      text of the user table; a number where it is compared with one
consent.NAME                        true or false
interest('PATH')                    sum of the weights of the interests of this category and below it, 0 to 1; an
                                    interest without a category is known by the id of its medoid item
affinity('PATH')                    share of the user's activity in this category, 0 where there is none
count(ACTION, 28d), count(28d)      events of the 28 days of 24 hours before as_of, of an action or of any
sum(ACTION, 28d), sum(28d)          of their values; an event without a value adds 0
days(ACTION, 28d), days(28d)        of these days, those with at least one such event
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from sonder.segments.lifecycle import STATES
from sonder.segments.rules.syntax import Type

PLAIN = {
    "lifecycle": Type.TEXT,
    "cluster": Type.TEXT,
    "since_days": Type.NUMBER,
    "recency_days": Type.NUMBER,
    "tenure_days": Type.NUMBER,
    "first_seen": Type.DATE,
    "last_seen": Type.DATE,
    "active_days": Type.NUMBER,
    "num_events": Type.NUMBER,
    "num_interests": Type.NUMBER,
    "is_cold": Type.TRUTH,
}
KEYED = {"score": Type.NUMBER, "attribute": Type.TEXT, "consent": Type.TRUTH}
PATHS = ("interest", "affinity")
WINDOWED = ("count", "sum", "days")
CALLS = {**dict.fromkeys(PATHS, Type.NUMBER), **dict.fromkeys(WINDOWED, Type.NUMBER)}


@dataclass(frozen=True)
class RuleSchema:
    """Names that a release knows; None where any name will do (its values are unknown for users without it)."""

    scores: frozenset[str] | None = None
    actions: frozenset[str] | None = None
    paths: frozenset[str] | None = None  # categories, those above them, and items without one
    clusters: frozenset[str] | None = None
    attributes: frozenset[str] | None = None
    consents: frozenset[str] | None = None
    states: frozenset[str] = frozenset(STATES)

    def names_of(self, kind: str) -> frozenset[str] | None:
        """Keys that a field of this kind may have."""
        known = {"score": self.scores, "attribute": self.attributes, "consent": self.consents}
        known |= dict.fromkeys(PATHS, self.paths) | dict.fromkeys(WINDOWED, self.actions)
        return known.get(kind)

    def values_of(self, kind: str) -> frozenset[str] | None:
        """Texts that a field of this kind may be."""
        return {"lifecycle": self.states, "cluster": self.clusters}.get(kind)


OPEN_SCHEMA = RuleSchema()  # checks types, and no name but the lifecycle's


def paths_of(categories: Iterable[str | None]) -> frozenset[str]:
    """Categories with every category above them: a/b -> a, a/b."""
    distinct = {category for category in categories if category}
    return frozenset(path for category in distinct for path in accumulate(category.split("/"), "{}/{}".format))
