"""What a gateway counts of both arms of a canary, and how the counts of many gateways add up.

Time goes in slots of SLOT_S seconds by the wall clock, so slots of several gateways are the same slots; WINDOW of them
are kept. A slot has, for each arm and kind of answer, requests, degraded and failed ones, and latencies in bins of a
constant ratio (2^(1/8), 9 %). Scores are counted once per user and window, in bins of 2^(1/32) (2.2 %) on both sides of
0: fine enough that quantiles of both arms together can be cut afterwards, and bins of two gateways add up.
Each gateway replaces one JSON file of the workspace every few seconds; a file nobody wrote for STALE_S is of a gateway
that has ended.
Limits: 9 % of a latency, 2.2 % of a score; a user who reads from two gateways counts once for each; clocks of nodes
that differ by more than a slot blur slots into one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sonder.core.errors import SonderError
from sonder.core.storage import Folder

ARMS = ("served", "candidate")
KINDS = ("stored", "computed", "batch")  # stored reads; answers that stages take part in; batches, one for each arm
SLOT_S, WINDOW = 10, 120
STALE_S = 60.0
MOST_SCORES = 32  # that are compared; others are not looked at
_PER_OCTAVE, _SCORE_PER_OCTAVE = 8, 32
_MIDDLE = 1 << 12  # code of a score of 1; codes of negative ones are negative
LEAST_S, NUM_BINS = 1e-6, 28 * _PER_OCTAVE  # to 268 s


def latency_bin(seconds: float) -> int:
    """Bin of a latency; all below a microsecond share the first, all above four minutes the last."""
    if seconds <= LEAST_S:
        return 0
    return min(NUM_BINS - 1, int(math.log2(seconds / LEAST_S) * _PER_OCTAVE))


def bin_end_s(latency: int) -> float:
    """Upper end of a latency's bin, in seconds."""
    return float(LEAST_S * 2 ** ((latency + 1) / _PER_OCTAVE))


def score_bin(value: float) -> int:
    """Bin of a score: ordered as the scores are, 0 for 0."""
    if value == 0 or not math.isfinite(value):
        return 0
    code = round(math.log2(abs(value)) * _SCORE_PER_OCTAVE) + _MIDDLE
    return max(1, code) if value > 0 else -max(1, code)


@dataclass
class Tally:
    """Answers of one arm and kind in one slot, or in several."""

    requests: int = 0
    degraded: int = 0
    errors: int = 0
    latencies: Counter[int] = field(default_factory=Counter)  # bin -> answers

    def add(self, other: Tally) -> None:
        self.requests += other.requests
        self.degraded += other.degraded
        self.errors += other.errors
        self.latencies.update(other.latencies)

    def to_list(self) -> list[Any]:
        return [self.requests, self.degraded, self.errors, sorted(self.latencies.items())]

    @classmethod
    def from_list(cls, content: list[Any]) -> Tally:
        requests, degraded, errors, latencies = content
        return cls(int(requests), int(degraded), int(errors), Counter({int(one): int(n) for one, n in latencies}))


Slot = dict[tuple[str, str], Tally]  # (arm, kind)
Scores = dict[str, dict[str, Counter[int]]]  # arm -> score -> bin -> users


@dataclass
class Counts:
    """Of one gateway, or of several together."""

    slots: dict[int, Slot] = field(default_factory=dict)  # by number since 1970
    scores: Scores = field(default_factory=lambda: {arm: {} for arm in ARMS})
    gateways: int = 0
    dropped: int = 0  # shadow answers that were not computed because of load

    def total(self, arm: str, kind: str, *, slots: Iterable[int] | None = None) -> Tally:
        """Of these slots; None: of all."""
        found = Tally()
        for number in self.slots if slots is None else slots:
            if tally := self.slots.get(number, {}).get((arm, kind)):
                found.add(tally)
        return found

    def add(self, other: Counts) -> None:
        for number, slot in other.slots.items():
            for key, tally in slot.items():
                self.slots.setdefault(number, {}).setdefault(key, Tally()).add(tally)
        for arm, scores in other.scores.items():
            for name, users in scores.items():
                self.scores[arm].setdefault(name, Counter()).update(users)
        self.gateways += other.gateways
        self.dropped += other.dropped

    def since(self, slot: int) -> Counts:
        """Without the slots before this one."""
        kept = {number: tallies for number, tallies in self.slots.items() if number >= slot}
        return Counts(kept, self.scores, self.gateways, self.dropped)

    def to_dict(self) -> dict[str, Any]:
        return {
            "slots": [
                {"slot": number, "answers": [[*key, *tally.to_list()] for key, tally in sorted(slot.items())]}
                for number, slot in sorted(self.slots.items())
            ],
            "scores": {
                arm: {name: sorted(users.items()) for name, users in sorted(scores.items())}
                for arm, scores in self.scores.items()
            },
            "dropped": self.dropped,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Counts:
        """One gateway's; KeyError, ValueError or TypeError where it is something else."""
        slots = {
            int(slot["slot"]): {(str(a), str(k)): Tally.from_list(rest) for a, k, *rest in slot["answers"]}
            for slot in content["slots"]
        }
        scores = {
            arm: {str(name): Counter(dict(users)) for name, users in content["scores"][arm].items()} for arm in ARMS
        }
        return cls(slots, scores, gateways=1, dropped=int(content["dropped"]))


def write_counts(folder: Folder, gateway: str, counts: Counts, *, now_s: float) -> None:
    """Replace what a gateway last said."""
    (folder / f"{gateway}.json").write_json({"written_at_s": now_s, **counts.to_dict()})


def read_counts(folder: Folder, *, now_s: float) -> Counts:
    """Of all gateways that wrote lately, together, over the window that ends now."""
    together = Counts()
    for file in folder.children():
        if not file.name.endswith(".json"):
            continue
        try:
            content = file.read_json()
            if now_s - float(content["written_at_s"]) > STALE_S:
                continue
            together.add(Counts.from_dict(content))
        except (SonderError, KeyError, ValueError, TypeError):
            continue  # of another version, or gone since the listing: the others count
    return together.since(slot_of(now_s) - WINDOW + 1)


def slot_of(now_s: float) -> int:
    """Number of the slot of a moment."""
    return int(now_s // SLOT_S)
