"""Whether the candidate of a canary breaks a limit: both arms' numbers side by side, and one rule for all of them.

A limit is broken where three things hold at once:
1. the estimate is past the limit (the ratio of 99th percentiles, a difference of shares, a PSI);
2. what was seen is no accident between two equal arms, at ALPHA for each number and look. For counts that is Fisher's
   exact test: whose answers they are is what a hash of the user decided, so equal arms are exchangeable at any count.
   For PSI it is its distribution between equal arms, (1/n + 1/m) times chi-square of (bins - 1) (Yurdakul 2018): the
   noise floor, which falls with the users seen;
3. counts: it still holds without the slot that had most of it, so one stall of seconds ends no canary.
ALPHA is so small because a trial is looked at every few seconds for days; the price is some tens of answers more.
Both the whole window and its last RECENT slots are judged: one finds what is slight, the other what broke just now.
Limits: users who read a lot count by each of their requests, so the arms are exchangeable by user and not by request;
a fault that comes in bursts longer than a slot and by chance hits one arm alone is not told from a real one. In canary
mode PSI compares different users; in shadow mode the same ones, and the noise floor is higher than it had to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, hypergeom

from sonder.releases.canary import Limits
from sonder.releases.canary_counts import KINDS, MOST_SCORES, Counts, Tally, bin_end_s

ALPHA = 1e-6
RECENT = 12  # slots
NUM_BINS = 10
SLOW_S = 0.001  # no 99th percentile below it is slow, whatever the other one is


@dataclass(frozen=True)
class Comparison:
    """One number of both arms."""

    name: str  # such as `p99 stored`, `degraded computed`, `psi buy_30d`
    served: float | None  # of the arm; None for a PSI, which is of both
    candidate: float | None
    value: float  # what the limit is held against
    limit: float
    num_served: int  # requests, or users
    num_candidate: int
    is_judged: bool  # both arms have answered often enough
    is_broken: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        arms = "" if self.served is None else f" (served {self.served:.4g}, candidate {self.candidate:.4g})"
        counted = f"n {self.num_served:,} and {self.num_candidate:,}"
        return f"{self.name}: {self.value:.4g} of at most {self.limit:g}{arms}, {counted}"


def compare(counts: Counts, limits: Limits) -> list[Comparison]:
    """Every number that there is, over the whole window; broken also where the recent slots alone break it."""
    recent = counts.since(max(counts.slots, default=0) - RECENT + 1)
    both = zip(_of_kinds(counts, limits), _of_kinds(recent, limits), strict=True)
    return [*(_with_recent(one, other) for one, other in both), *_of_scores(counts, limits)]


def broken(comparisons: list[Comparison]) -> str | None:
    """Why the candidate has to go; None where nothing says so."""
    found = [str(one) for one in comparisons if one.is_broken]
    return "; ".join(found[:3]) or None


def _with_recent(whole: Comparison, recent: Comparison) -> Comparison:
    return recent if recent.is_broken and not whole.is_broken else whole


# -- counts ----------------------------------------------------------------------------------------------------------


def _of_kinds(counts: Counts, limits: Limits) -> Iterator[Comparison]:
    for kind in KINDS:
        served, candidate = counts.total("served", kind), counts.total("candidate", kind)
        yield _of_share(counts, kind, "degraded", served, candidate, limits)
        yield _of_share(counts, kind, "errors", served, candidate, limits)
        yield _of_latency(counts, kind, served, candidate, limits)


def _of_share(counts: Counts, kind: str, what: str, served: Tally, candidate: Tally, limits: Limits) -> Comparison:
    limit: float = getattr(limits, what)
    bad_s, bad_c = getattr(served, what), getattr(candidate, what)
    share_s, share_c = _share(bad_s, served.requests), _share(bad_c, candidate.requests)
    is_judged = min(served.requests, candidate.requests) >= limits.min_requests

    def is_past(bad_s: int, num_s: int, bad_c: int, num_c: int) -> bool:
        return _share(bad_c, num_c) - _share(bad_s, num_s) > limit and _is_no_accident(bad_s, num_s, bad_c, num_c)

    is_broken = is_judged and is_past(bad_s, served.requests, bad_c, candidate.requests)
    if is_broken:  # without the worst slot too
        worst_s, worst_c = _without_worst(counts, kind, lambda tally: int(getattr(tally, what)))
        is_broken = is_past(getattr(worst_s, what), worst_s.requests, getattr(worst_c, what), worst_c.requests)
    name = f"{what} {kind}"
    return Comparison(
        name,
        share_s,
        share_c,
        share_c - share_s,
        limit,
        served.requests,
        candidate.requests,
        is_judged,
        is_broken,
    )


def _of_latency(counts: Counts, kind: str, served: Tally, candidate: Tally, limits: Limits) -> Comparison:
    num_s, num_c = served.latencies.total(), candidate.latencies.total()
    at_s, at_c = p99(served), p99(candidate)
    is_judged = min(num_s, num_c) >= limits.min_requests
    slow = max(limits.p99_ratio * at_s, SLOW_S)

    def num_slow(tally: Tally) -> int:
        return sum(n for one, n in tally.latencies.items() if bin_end_s(one) > slow)

    def is_past(of_s: Tally, of_c: Tally) -> bool:
        slow_c, of_all = num_slow(of_c), of_c.latencies.total()
        return slow_c > 0.01 * of_all and _is_no_accident(num_slow(of_s), of_s.latencies.total(), slow_c, of_all)

    is_broken = is_judged and at_c > slow and is_past(served, candidate)
    if is_broken:
        is_broken = is_past(*_without_worst(counts, kind, num_slow))
    ratio = at_c / at_s if at_s else 0.0
    return Comparison(f"p99 {kind}", at_s, at_c, ratio, limits.p99_ratio, num_s, num_c, is_judged, is_broken)


def p99(tally: Tally) -> float:
    """99th percentile in seconds, the upper end of its bin; 0 without answers."""
    left = 0.99 * tally.latencies.total()
    for one in sorted(tally.latencies):
        left -= tally.latencies[one]
        if left <= 0:
            return bin_end_s(one)
    return 0.0


def _without_worst(counts: Counts, kind: str, bad: Any) -> tuple[Tally, Tally]:
    """Both arms without the slot in which the candidate had most that was bad."""
    worst = max(counts.slots, key=lambda number: bad(counts.total("candidate", kind, slots=[number])))
    kept = [number for number in counts.slots if number != worst]
    return counts.total("served", kind, slots=kept), counts.total("candidate", kind, slots=kept)


def _is_no_accident(bad_s: int, num_s: int, bad_c: int, num_c: int) -> bool:
    """Fisher's exact test, one-sided: so many bad ones among the candidate's, given how many there are in all."""
    if not num_c or not bad_c:
        return False
    return bool(hypergeom.sf(bad_c - 1, num_s + num_c, bad_s + bad_c, num_c) < ALPHA)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# -- scores ----------------------------------------------------------------------------------------------------------


def _of_scores(counts: Counts, limits: Limits) -> Iterator[Comparison]:
    of_served, of_candidate = counts.scores["served"], counts.scores["candidate"]
    names = sorted(of_served.keys() & of_candidate.keys())[:MOST_SCORES]
    for name in names:
        served, candidate = of_served[name], of_candidate[name]
        num_s, num_c = served.total(), candidate.total()
        value, num_bins = psi(served, candidate)
        is_judged = min(num_s, num_c) >= limits.min_requests
        # A user may have read from every gateway, and counts once for each.
        floor = noise_floor(num_s, num_c, num_bins, alpha=ALPHA / len(names)) * max(1, counts.gateways)
        is_broken = is_judged and value > limits.psi and value > floor
        yield Comparison(f"psi {name}", None, None, value, limits.psi, num_s, num_c, is_judged, is_broken)


def psi(served: Counter[int], candidate: Counter[int]) -> tuple[float, int]:
    """Population stability index over tenths of both arms together, and how many bins those are.

    Fewer than ten where a score has few values. Half a user is added to each bin, so an empty one is no infinity.
    """
    if not served or not candidate:
        return 0.0, 1
    values = sorted(served.keys() | candidate.keys())
    of_s = np.array([served[value] for value in values], dtype=np.float64)
    of_c = np.array([candidate[value] for value in values], dtype=np.float64)
    weights = of_s / of_s.sum() + of_c / of_c.sum()  # so that the larger arm does not place the bins alone
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    bins = np.minimum((middles * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins = np.unique(bins, return_inverse=True)[1]
    shares = []
    for one in (of_s, of_c):
        users = np.bincount(bins, weights=one) + 0.5
        shares.append(users / users.sum())
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0]))), len(shares[0])


def noise_floor(num_served: int, num_candidate: int, num_bins: int, *, alpha: float) -> float:
    """What PSI passes between two equal arms with chance alpha."""
    if num_bins < 2 or not num_served or not num_candidate:
        return np.inf
    return float((1 / num_served + 1 / num_candidate) * chi2.isf(alpha, num_bins - 1))
