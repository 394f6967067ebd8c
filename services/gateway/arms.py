"""What this gateway counts of the two arms of a canary; on the way of a stored read it is two appends and a search.

What costs more waits: once a second `roll` puts latencies into their bins, reads the scores of users who were not
counted lately, starts a new slot where one is due, and tells the metrics what has been added since.
Limits: of more than QUEUED answers a second the newest are looked at for their scores, so that a roll takes a
millisecond; cold users are left out, they all have the base rates. Latencies of the first SETTLING_S are dropped: the
candidate's caches were cold.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

import orjson

from sonder.core import metrics
from sonder.releases.canary_counts import (
    ARMS,
    KINDS,
    MOST_SCORES,
    WINDOW,
    Counts,
    Slot,
    Tally,
    latency_bin,
    score_bin,
    slot_of,
)
from sonder.releases.canary_verdict import p99

STORED, COMPUTED, BATCH = range(len(KINDS))
QUEUED = 32
MOST_USERS = 20_000  # of an arm and window, whose scores are counted
SETTLING_S = 10.0
_HEAD = 160  # bytes of an answer in which `degraded` stands, where it stands at all: after `release` and `age_ms`
_DEGRADED = b'"degraded":'


class Arm:
    """Counts of one arm. Of one event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._slot = [Tally() for _ in KINDS]
        self._seconds: list[list[float]] = [[] for _ in KINDS]  # of answers that are not in the slot yet
        self._answers: deque[tuple[str, bytes]] = deque(maxlen=QUEUED)  # user, answer
        self._users: dict[str, int] = {}  # whose scores are counted, and in which slot
        self._scores: dict[int, dict[str, Counter[int]]] = {}  # slot -> score -> bin -> users
        self._told = [(0, 0, 0) for _ in KINDS]  # what the metrics know already of the current slot

    def note(self, kind: int, seconds: float, user_id: str, content: bytes) -> None:
        """One answer, and how long it took in here."""
        self._seconds[kind].append(seconds)
        if content.find(_DEGRADED, 0, _HEAD) >= 0:
            self._slot[kind].degraded += 1
        self._answers.append((user_id, content))

    def count(self, kind: int, seconds: float, content: bytes) -> None:
        """The same without its scores, which `keep` adds: of a shadowed answer, when its shadow is there too."""
        self._seconds[kind].append(seconds)
        if content.find(_DEGRADED, 0, _HEAD) >= 0:
            self._slot[kind].degraded += 1

    def keep(self, user_id: str, content: bytes) -> None:
        """An answer whose scores may be counted."""
        self._answers.append((user_id, content))

    def note_batch(self, user_id: str = "", first: bytes | None = None) -> None:
        """The part of a batch: its first profile stands for all. Its latency would only say how many there were."""
        counted = self._slot[BATCH]
        counted.requests += 1
        if first is None:  # a table
            return
        if first.find(_DEGRADED, 0, _HEAD) >= 0:
            counted.degraded += 1
        self._answers.append((user_id, first))

    def note_failure(self, kind: int) -> None:
        """One answer that there was not."""
        self._slot[kind].requests += 1
        self._slot[kind].errors += 1

    def fold(self, *, with_latencies: bool = True) -> None:
        """Count what was noted since the last time."""
        for counted, seconds in zip(self._slot, self._seconds, strict=True):
            counted.requests += len(seconds)
            if with_latencies:
                counted.latencies.update(map(latency_bin, seconds))
            seconds.clear()

    def tallies(self) -> dict[str, Tally]:
        """Of the current slot, where there is anything."""
        return {kind: tally for kind, tally in zip(KINDS, self._slot, strict=True) if tally.requests}

    def start_slot(self) -> None:
        self._slot, self._told = [Tally() for _ in KINDS], [(0, 0, 0) for _ in KINDS]

    def count_scores(self, slot: int) -> None:
        """Read what is queued; each user counts once in the window."""
        while self._answers:
            user_id, content = self._answers.popleft()
            if user_id in self._users or len(self._users) >= MOST_USERS:
                continue
            answer = orjson.loads(content)
            scores = answer.get("scores")
            if not scores or answer["is_cold"]:
                continue
            self._users[user_id] = slot
            counted = self._scores.setdefault(slot, {})
            for score in scores[:MOST_SCORES]:
                counted.setdefault(score["name"], Counter())[score_bin(score["value"])] += 1

    def forget_before(self, slot: int) -> None:
        """What is older than the window."""
        if any(number < slot for number in self._scores):
            self._scores = {number: scores for number, scores in self._scores.items() if number >= slot}
            self._users = {user: number for user, number in self._users.items() if number >= slot}

    def scores(self) -> dict[str, Counter[int]]:
        """Users of the window by the bins of their scores."""
        together: dict[str, Counter[int]] = {}
        for scores in self._scores.values():
            for name, users in scores.items():
                together.setdefault(name, Counter()).update(users)
        return together

    def tell(self) -> None:
        """Add to the metrics what came since the last time."""
        for number, (kind, counted) in enumerate(zip(KINDS, self._slot, strict=True)):
            now = (counted.requests - counted.degraded - counted.errors, counted.degraded, counted.errors)
            for outcome, num, before in zip(("fine", "degraded", "failed"), now, self._told[number], strict=True):
                if num > before:
                    metrics.CANARY_ANSWERS.labels(self.name, kind, outcome).inc(num - before)
            self._told[number] = now


class Recorder:
    """Both arms of one trial in this gateway."""

    def __init__(self, *, settling_s: float = SETTLING_S, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._settled_at = clock_s() + settling_s
        self.served, self.candidate = (Arm(name) for name in ARMS)
        self._slot, self._slots = slot_of(clock_s()), dict[int, Slot]()
        self.dropped = 0  # shadow answers that were not computed

    def roll(self) -> None:
        """Once a second: count what was noted, tell the metrics, and start a new slot where one is due."""
        now_s = self._clock_s()
        slot = slot_of(now_s)
        oldest = slot - WINDOW + 1
        for arm in (self.served, self.candidate):
            arm.fold(with_latencies=now_s >= self._settled_at)
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
        for arm in (self.served, self.candidate):
            arm.fold(with_latencies=self._clock_s() >= self._settled_at)
        slots = {**self._slots, self._slot: self._current()}
        scores = {arm.name: arm.scores() for arm in (self.served, self.candidate)}
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
