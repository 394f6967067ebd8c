"""Simulated traffic of a canary: answers of both arms, slot after slot, for the rule that judges them.

Latencies are 4 ms and a log-normal on top (median 0.9 ms, sigma 1.5: p99 about 34 ms), scores are Beta(2, 18), one
answer in a thousand is degraded. What is given to `pass_slot` is the candidate's; the served arm keeps those.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sonder.releases.canary import Limits
from sonder.releases.canary_counts import LEAST_S, NUM_BINS, Counts, Tally, score_bin
from sonder.releases.canary_verdict import Comparison, broken, compare

LIMITS = Limits()
DEGRADED = 0.001


class Traffic:
    """One trial."""

    def __init__(self, seed: int, *, share: float = 0.05, per_slot: int = 600) -> None:
        """`per_slot`: answers of both arms together; every fourth is of a user who was not seen before."""
        self._draw = np.random.default_rng(seed)
        self._share, self._per_slot, self.slot = share, per_slot, 0
        self.counts = Counts(gateways=1)

    def pass_slot(
        self, *, factor: float = 1.0, degraded: float = DEGRADED, errors: float = 0.0, shift: float = 0.0
    ) -> list[Comparison]:
        """One more slot, and what the rule is told after it."""
        num_candidate = int(self._draw.binomial(self._per_slot, self._share))
        self.slot += 1
        self.counts.slots[self.slot] = {
            ("served", "stored"): self._tally(self._per_slot - num_candidate, 1.0, DEGRADED, 0.0),
            ("candidate", "stored"): self._tally(num_candidate, factor, degraded, errors),
        }
        for arm, num, moved in (("served", self._per_slot - num_candidate, 0.0), ("candidate", num_candidate, shift)):
            scores = np.clip(self._draw.beta(2, 18, num // 4) + moved, 1e-6, 1)
            self.counts.scores[arm].setdefault("buy_30d", Counter()).update(binned_scores(scores))
        return compare(self.counts, LIMITS)

    def slots_until_broken(self, most: int, **worse: float) -> int | None:
        """How many more it takes; None where these are not enough."""
        for number in range(1, most + 1):
            if broken(self.pass_slot(**worse)):
                return number
        return None

    def _tally(self, num: int, factor: float, degraded: float, errors: float) -> Tally:
        seconds = factor * (0.004 + self._draw.lognormal(-7, 1.5, num))
        bins = np.minimum((np.log2(seconds / LEAST_S) * 8).astype(np.int64), NUM_BINS - 1)
        found, numbers = np.unique(bins, return_counts=True)
        latencies = Counter(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
        return Tally(num, int(self._draw.binomial(num, degraded)), int(self._draw.binomial(num, errors)), latencies)


def binned_scores(scores: NDArray[np.float64]) -> Counter[int]:
    """Users by the bin of their score, as `score_bin` says of each positive one."""
    assert score_bin(0.5) == -32 + (1 << 12), "the formula below is that of score_bin"
    codes, numbers = np.unique(np.round(np.log2(scores) * 32).astype(np.int64) + (1 << 12), return_counts=True)
    return Counter(dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
