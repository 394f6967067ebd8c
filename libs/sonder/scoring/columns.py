"""The columns of a feature specification in plain words, in the order in which features.py computes them.

A column is (family, description). The columns of a family say the same thing over different windows (or, for the
embedding, nothing on their own): drivers are told per family. A description is made to be followed by ` = value`:
"number of 'buy' events in the last 30 days = 3".

A session ends with a pause of 30 minutes. `share of the last 14 days' events in the last 7` is a trend: a half says
that nothing changes. `pace` compares the rate of a window with the rate of the user's whole life: 1 says as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sonder.scoring.specification import FeatureSpec

Column = tuple[str, str]

DAY_PARTS = ("night (0 to 6 UTC)", "morning (6 to 12 UTC)", "afternoon (12 to 18 UTC)", "evening (18 to 24 UTC)")
EMBEDDING_DRIVER = "behaviour of similar users (embedding)"
INTERESTS = (  # of the interests before the cutoff; what sonder.interests.summary says, in its order
    "number of interests",
    "weight of the strongest interest",
    "spread over interests (entropy in nats)",
    "weight of new interests",
    "weight of growing interests",
    "weight of fading interests",
    "days since the strongest interest was last seen",
)


def describe(spec: FeatureSpec) -> tuple[Column, ...]:
    """Every column of the specification [F]."""
    kinds = ("", *(f"{action!r} " for action in spec.actions))
    return (
        *_windowed(spec, kinds),
        *_trends(spec, kinds),
        *_ratios(spec),
        *_alone(_over_a_life(kinds)),
        *_categories(spec),
        *[("lifecycle", f"lifecycle is {state!r} (1 yes, 0 no)") for state in spec.states],
        *(_alone(INTERESTS) if spec.reads_interests else ()),
        *[(EMBEDDING_DRIVER, f"embedding {d}") for d in range(spec.embedding_dim)],
    )


def _windowed(spec: FeatureSpec, kinds: tuple[str, ...]) -> list[Column]:
    """Each of these over every window and ever."""
    families = [f"number of {kind}events" for kind in kinds]
    families += ["number of active days", "number of sessions", "number of different items"]
    families += ["sum of values", "mean value", "largest value"] if spec.has_values else []
    spans = [*(within(days) for days in spec.windows_days), "ever"]
    return [(family, f"{family} {span}") for family in families for span in spans]


def _trends(spec: FeatureSpec, kinds: tuple[str, ...]) -> list[Column]:
    shares = [
        (f"trend of {kind}events", f"share of the last {2 * days} days' {kind}events in the last {days}")
        for kind in kinds
        for days in spec.trend_days
    ]
    paces = [
        (f"pace of {kind}events", f"pace of {kind}events {within(days)} (1 is as ever)")
        for kind in kinds
        for days in spec.compared_days
    ]
    return shares + paces


def _ratios(spec: FeatureSpec) -> list[Column]:
    families = [f"share of {action!r} events" for action in spec.compared_actions]
    families += ["value per event"] if spec.has_values else []
    return [(family, f"{family} {within(days)}") for family in families for days in spec.compared_days]


def _over_a_life(kinds: tuple[str, ...]) -> list[str]:
    return [
        *(f"days since the last {kind}event" for kind in kinds),
        "days since the first event",
        "mean days between active days",
        "spread of the days between active days",
        "most days between active days",
        "days between the last two active days",
        "days since the last event relative to the usual gap",
        "events per different item",
        *(f"share of events in the {part}" for part in DAY_PARTS),
        "share of events on weekends",
    ]


def _categories(spec: FeatureSpec) -> list[Column]:
    family = "share of events in category {!r}"
    ever = [(family.format(name), family.format(name)) for name in spec.categories]
    recent = [
        (family.format(name), f"{family.format(name)} {within(days)}")
        for days in spec.recent_days
        for name in spec.categories
    ]
    return [*ever, *recent, *_alone([f"days since the last event in category {name!r}" for name in spec.categories])]


def _alone(descriptions: list[str] | tuple[str, ...]) -> list[Column]:
    """Columns that are families of their own."""
    return [(description, description) for description in descriptions]


def within(days: int) -> str:
    """A window as a reader says it."""
    return "in the last day" if days == 1 else f"in the last {days} days"
