"""What this gateway counts of the two arms of a canary; on the way of a stored read it is a few increments.

What costs more waits: answers are kept in a short queue, and once a second `roll` reads the scores of those of users
who were not counted lately, starts a new slot where one is due, and tells the metrics what has been added since.
Limits: of more than QUEUED answers a second the newest are looked at for their scores; cold users are left out, they
all have the base rates. Latencies of the first SETTLING_S are dropped: the candidate's caches were cold.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

import orjson

from sonder.core import metrics
from sonder.releases.canary_counts import (
    ARMS,
    KINDS,
    LEAST_S,
    MOST_SCORES,
    NUM_BINS,
    WINDOW,
    Counts,
    Slot,
    Tally,
    score_bin,
    slot_of,
)
from sonder.releases.canary_verdict import p99

STORED, COMPUTED, BATCH = range(len(KINDS))
QUEUED = 256
MOST_USERS = 20_000  # of an arm and window, whose scores are counted
SETTLING_S = 10.0
_HEAD = 160  # bytes of an answer in which `degraded` stands, where it stands at all: after `release` and `age_ms`
_DEGRADED = b'"degraded":'
_OCTAVES, _LAST = 8, NUM_BINS - 1
_log2 = math.log2


class Arm:
    """Counts of one arm. Of one event loop."""

    __slots__ = ("_current", "answers", "name", "scores", "told", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self._current = _empty()
        self.answers: deque[bytes] = deque(maxlen=QUEUED)
        self.users: dict[str, int] = {}  # whose scores are counted, and in which slot
        self.scores: dict[int, dict[str, Counter[int]]] = {}  # slot -> score -> bin -> users
        self.told = _empty()  # what the metrics know already of the current slot

    def note(self, kind: int, seconds: float, content: bytes) -> None:
        """One answer, and how long it took in here."""
        counted = self._current[kind]
        counted[0] += 1
        latency = int(_log2(seconds / LEAST_S) * _OCTAVES) if seconds > LEAST_S else 0
        counted[3 + (latency if latency < _LAST else _LAST)] += 1
        if content.find(_DEGRADED, 0, _HEAD) >= 0:
            counted[1] += 1
        self.answers.append(content)

    def note_batch(self, first: bytes | None = None) -> None:
        """The part of a batch: its first profile stands for all. Its latency would only say how many there were."""
        counted = self._current[BATCH]
        counted[0] += 1
        if first is None:  # a table
            return
        if first.find(_DEGRADED, 0, _HEAD) >= 0:
            counted[1] += 1
        self.answers.append(first)

    def note_failure(self, kind: int) -> None:
        """One answer that there was not."""
        counted = self._current[kind]
        counted[0] += 1
        counted[2] += 1

    def forget_latencies(self) -> None:
        for counted in self._current:
            counted[3:] = [0] * NUM_BINS

    def tallies(self) -> dict[str, Tally]:
        """Of the current slot."""
        return {kind: _tally(self._current[number]) for number, kind in enumerate(KINDS) if self._current[number][0]}

    def start_slot(self) -> None:
        self._current, self.told = _empty(), _empty()

    def count_scores(self, slot: int) -> None:
        """Read what is queued; each user counts once in the window."""
        while self.answers:
            answer = orjson.loads(self.answers.popleft())
            user, scores = answer["user_id"], answer.get("scores")
            if not scores or answer["is_cold"] or user in self.users or len(self.users) >= MOST_USERS:
                continue
            self.users[user] = slot
            counted = self.scores.setdefault(slot, {})
            for score in scores[:MOST_SCORES]:
                counted.setdefault(score["name"], Counter())[score_bin(score["value"])] += 1

    def forget_before(self, slot: int) -> None:
        """What is older than the window."""
        if any(number < slot for number in self.scores):
            self.scores = {number: scores for number, scores in self.scores.items() if number >= slot}
            self.users = {user: number for user, number in self.users.items() if number >= slot}

    def scores_of_window(self) -> dict[str, Counter[int]]:
        together: dict[str, Counter[int]] = {}
        for scores in self.scores.values():
            for name, users in scores.items():
                together.setdefault(name, Counter()).update(users)
        return together

    def tell(self) -> None:
        """Add to the metrics what came since the last time."""
        for number, kind in enumerate(KINDS):
            now, before = self._current[number], self.told[number]
            degraded, errors = now[1] - before[1], now[2] - before[2]
            fine = now[0] - before[0] - degraded - errors
            for outcome, num in (("fine", fine), ("degraded", degraded), ("failed", errors)):
                if num:
                    metrics.CANARY_ANSWERS.labels(self.name, kind, outcome).inc(num)
            self.told[number] = list(now)


class Recorder:
    """Both arms of one trial in this gateway."""

    def __init__(self, *, settling_s: float = SETTLING_S, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._settled_at = clock_s() + settling_s
        self.served, self.candidate = (Arm(name) for name in ARMS)
        self._slot, self._slots = slot_of(clock_s()), dict[int, Slot]()
        self.dropped = 0  # shadow answers that were not computed

    def roll(self) -> None:
        """Once a second: count scores, tell the metrics, and start a new slot where one is due."""
        now_s = self._clock_s()
        slot = slot_of(now_s)
        oldest = slot - WINDOW + 1
        for arm in (self.served, self.candidate):
            if now_s < self._settled_at:
                arm.forget_latencies()
            arm.count_scores(slot)
            arm.forget_before(oldest)
            arm.tell()
        if slot != self._slot:
            self._slots[self._slot] = self._current()
            for arm in (self.served, self.candidate):
                arm.start_slot()
            self._slot = slot
            self._slots = {number: one for number, one in self._slots.items() if number >= oldest}

    def counts(self) -> Counts:
        """Of the window until now."""
        slots = {**self._slots, self._slot: self._current()}
        scores = {arm.name: arm.scores_of_window() for arm in (self.served, self.candidate)}
        return Counts({number: one for number, one in slots.items() if one}, scores, 1, self.dropped)

    def tell_latencies(self, counts: Counts) -> None:
        """The 99th percentiles of the window as metrics."""
        for arm in ARMS:
            for kind in KINDS:
                if (tally := counts.total(arm, kind)).latencies:
                    metrics.CANARY_P99_SECONDS.labels(arm, kind).set(p99(tally))

    def _current(self) -> Slot:
        return {
            (arm.name, kind): tally for arm in (self.served, self.candidate) for kind, tally in arm.tallies().items()
        }


def _empty() -> list[list[int]]:
    """Of each kind: requests, degraded, failed, and the bins of latencies."""
    return [[0] * (3 + NUM_BINS) for _ in KINDS]


def _tally(counted: list[int]) -> Tally:
    requests, degraded, errors, *bins = counted
    return Tally(requests, degraded, errors, Counter({number: n for number, n in enumerate(bins) if n}))
