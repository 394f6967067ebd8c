"""The portrait and the name of each behaviour cluster: what is more common inside than outside, with its numbers.

Lift is the mean share of a trait (segments.cluster_traits) among the users of the cluster over its mean share among all
users, drawn towards 1 as if PRIOR_USERS average users belonged to every cluster. A trait counts if its share inside is
at least MIN_SHARE and its lift at least MIN_LIFT; traits rank by share * log(lift), what each adds to telling
the cluster from the population, so neither a rare oddity nor what everybody does comes first.

A name is content first, then at most two traits of conduct of different kinds that are common enough to matter, such as
`garden/tools · core · buy-heavy`. Two categories are named where the first holds less than half of the events. Names of
a release are unique: the next trait is added where two are alike, the id where there is none. A cluster that a retrain
matched to its parent's keeps the parent's name as long as all that it says still holds.

Limits: shares are those of the users given (a sample of a large log); a name says what is typical, not what all do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.segments.cluster_traits import CONTENT_KINDS, Trait

MIN_SHARE = 0.05
MIN_LIFT = 1.25
PRIOR_USERS = 20
MIN_CONDUCT_WEIGHT = 0.05  # share * log(lift) of conduct that is worth a word in a name
MAX_LIFTS = 8  # of a portrait
MAX_CONTENT_LIFTS = 4
SEPARATOR = " · "
NOTHING_LIFTS = "average"


@dataclass(frozen=True)
class Lift:
    """One trait of a cluster: shares are means over users in [0, 1]."""

    kind: str
    key: str
    share: float  # inside
    population_share: float
    lift: float  # smoothed

    @property
    def trait(self) -> Trait:
        return Trait(self.kind, self.key)

    @property
    def weight(self) -> float:
        return self.share * float(np.log(self.lift))

    @property
    def label(self) -> str:
        """As it stands in a name."""
        if self.kind == "action":
            return f"{self.key}-heavy"
        return f"{self.key} users" if self.kind == "activity" else self.key

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ClusterName:
    text: str
    parts: tuple[Trait, ...]  # all that the text says


def lifts_of(
    traits: Sequence[Trait], sums_KF: NDArray[np.float64], users_K: NDArray[np.int64]
) -> list[tuple[Lift, ...]]:
    """What lifts in each cluster, strongest first -> [K]; the last row of the sums and of the users is all of them."""
    population_F = sums_KF[-1] / max(int(users_K[-1]), 1)
    found = []
    for sums_F, num_users in zip(sums_KF[:-1], users_K[:-1].tolist(), strict=True):
        shares_F = sums_F / max(num_users, 1)
        smoothed_F = (sums_F + PRIOR_USERS * population_F) / (num_users + PRIOR_USERS)
        lift_F = np.divide(smoothed_F, population_F, out=np.ones_like(smoothed_F), where=population_F > 0)
        lifts = [
            Lift(*traits[place], float(shares_F[place]), float(population_F[place]), float(lift_F[place]))
            for place in np.flatnonzero((shares_F >= MIN_SHARE) & (lift_F >= MIN_LIFT)).tolist()
        ]
        found.append(tuple(sorted(lifts, key=_rank)))
    return found


def name_clusters(
    lifts_K: Sequence[Sequence[Lift]], ids: Sequence[int], inherited: Mapping[int, ClusterName]
) -> list[ClusterName]:
    """A unique name for each cluster; `inherited` are the parent's names by id. Who keeps one goes first."""
    names: dict[int, ClusterName] = {}
    for row, (lifts, cluster_id) in enumerate(zip(lifts_K, ids, strict=True)):
        old = inherited.get(cluster_id)
        if old is not None and old.parts and set(old.parts) <= {lift.trait for lift in lifts}:
            names[row] = old
    taken = {name.text for name in names.values()}
    for row, (lifts, cluster_id) in enumerate(zip(lifts_K, ids, strict=True)):
        if row not in names:
            names[row] = _unique_name(lifts, cluster_id, taken)
            taken.add(names[row].text)
    return [names[row] for row in range(len(ids))]


def portrait_lifts(lifts: Sequence[Lift]) -> list[Lift]:
    """The few lifts to show: MAX_LIFTS, at most MAX_CONTENT_LIFTS of them content, in their order."""
    content = [lift for lift in lifts if lift.kind in CONTENT_KINDS][:MAX_CONTENT_LIFTS]
    conduct = [lift for lift in lifts if lift.kind not in CONTENT_KINDS][: MAX_LIFTS - len(content)]
    return [lift for lift in lifts if lift in content or lift in conduct]


def _rank(lift: Lift) -> tuple[float, int, str, str]:
    """Strongest first; of a category and its only child the child, which says more."""
    return (-round(lift.weight, 9), -lift.key.count("/"), lift.kind, lift.key)


def _unique_name(lifts: Sequence[Lift], cluster_id: int, taken: set[str]) -> ClusterName:
    content, conduct = _content(lifts), _conduct(lifts)
    said = [*content, *conduct]
    rest = [lift for lift in lifts if lift not in said and not _overlaps(lift, content)]
    text = _text(content, conduct)
    while text in taken and rest:
        (content if rest[0].kind in CONTENT_KINDS else conduct).append(rest.pop(0))
        text = _text(content, conduct)
    if text in taken:
        text = f"{text}{SEPARATOR}{cluster_id}"
    return ClusterName(text, tuple(lift.trait for lift in (*content, *conduct)))


def _content(lifts: Sequence[Lift]) -> list[Lift]:
    """The strongest content, and a second one beside it where the first is less than half of what they want."""
    found = [lift for lift in lifts if lift.kind in CONTENT_KINDS]
    if not found or found[0].share >= 0.5:
        return found[:1]
    second = [lift for lift in found[1:] if not _overlaps(lift, found[:1]) and lift.weight >= found[0].weight / 2]
    return [*found[:1], *second[:1]]


def _conduct(lifts: Sequence[Lift]) -> list[Lift]:
    """The strongest of each other kind, two at most."""
    found: dict[str, Lift] = {}
    for lift in lifts:
        if lift.kind not in CONTENT_KINDS and lift.weight >= MIN_CONDUCT_WEIGHT:
            found.setdefault(lift.kind, lift)
    return list(found.values())[:2]


def _overlaps(lift: Lift, others: Sequence[Lift]) -> bool:
    """Whether one of two categories lies below the other."""
    return lift.kind == "category" and any(
        f"{lift.key}/".startswith(f"{other.key}/") or f"{other.key}/".startswith(f"{lift.key}/") for other in others
    )


def _text(content: Sequence[Lift], conduct: Sequence[Lift]) -> str:
    joined = " + ".join(lift.label for lift in content)
    parts = [*([joined] if joined else []), *(lift.label for lift in conduct)]
    return SEPARATOR.join(parts) if parts else NOTHING_LIFTS
