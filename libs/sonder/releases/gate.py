"""The gate: does a release keep what its consumers rely on, compared with the one that is served? Pure.

Each promise gets one finding. Only `kept` lets a release pass:
kept              within its bounds; a metric or field that is new is kept too, there is nothing to compare it with
broken            past a bound, or a field that has disappeared, changed its type, or is null for every user
not measured      the release has no such number, so nobody can say that the promise is kept
not comparable    the number means something else than that of the served release (releases.comparability)
unknown           no release ever had it: the consumers file is wrong, not the release
A fall of exactly the tolerance is allowed. Shares are shares of the served value, of its size where it is negative.
Limits: each promotion is compared with the one before, so many falls within the tolerance add up: `at_least` and
`at_most` are what ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sonder.releases.comparability import Comparability, compare_settings
from sonder.releases.consumers import Consumer, Consumers, Requirement
from sonder.releases.facts import Interval, ReleaseFacts
from sonder.releases.metric_meaning import near_names

Status = Literal["kept", "broken", "not measured", "not comparable", "unknown"]
_ROUNDING = 1e-9  # of a value: bounds are computed in binary


@dataclass(frozen=True)
class Finding:
    """What became of one promise. `was` and `now` are numbers of a metric, types of a field; None: it has none."""

    consumer: str
    owner: str
    subject: str
    status: Status
    was: float | str | None
    now: float | str | None
    allowed: str
    why: str = ""  # what is to be known beside the numbers

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        asked = f" (owner: {self.owner})" if self.owner else ""
        change = change_of(self.was, self.now)
        values = f"was {told(self.was)}, is {told(self.now)}" + (f" ({change})" if change else "")
        parts = [f"{values}, allowed: {self.allowed}" if self.status == "broken" else self.status, self.why]
        return f"{self.consumer}{asked}: {self.subject} " + "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Verdict:
    """All findings on one release; `against` is None where nothing is served."""

    release: str
    against: str | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # how the measurements of the two differ

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings for which a promotion is refused."""
        return tuple(finding for finding in self.findings if finding.status != "kept")

    @property
    def would_refuse(self) -> bool:
        """Whether a promotion would be refused; the first of a workspace is not."""
        return self.against is not None and bool(self.refusals)

    @property
    def unknown(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == "unknown")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"would_refuse": self.would_refuse}


def judge(
    consumers: Consumers, now: ReleaseFacts, was: ReleaseFacts | None, known_metrics: Callable[[], set[str]]
) -> Verdict:
    """Compare a release with the served one (None: with nothing, only its own bounds count).

    `known_metrics`: names that any release has; asked only about a name that neither of the two has.
    """
    settings = compare_settings(was, now) if was is not None else Comparability()
    judged = _Judge(now, was, settings, known_metrics)
    findings = tuple(finding for consumer in consumers.consumers for finding in judged.of(consumer))
    return Verdict(now.id, None if was is None else was.id, findings, settings.notes)


@dataclass(frozen=True)
class _Judge:
    now: ReleaseFacts
    was: ReleaseFacts | None
    settings: Comparability
    known_metrics: Callable[[], set[str]]

    def of(self, consumer: Consumer) -> Iterator[Finding]:
        for need in consumer.needs:
            yield self._field(consumer, need)
        for requirement in consumer.requires:
            yield self._metric(consumer, requirement)

    def _field(self, consumer: Consumer, path: str) -> Finding:
        before = None if self.was is None else self.was.fields.get(path)
        after, status, why = self.now.fields.get(path), "kept", ""
        if before is None and after is None:
            status, why = "unknown", _near("field", path, self.now.fields.keys())
        elif after is None:
            status, why = "broken", _near("field", path, self.now.fields.keys(), lost=True)
        elif before is not None and before != after:
            status, why = "broken", "its meaning changed"
        elif self.now.metrics.get(f"coverage.{path}") == 0:
            status, why = "broken", "it is null for every user"
        return Finding(consumer.name, consumer.owner, path, status, before, after, "is there, unchanged", why)  # type: ignore[arg-type]

    def _metric(self, consumer: Consumer, required: Requirement) -> Finding:
        name = required.metric
        before = None if self.was is None else self.was.metrics.get(name)
        after, status, why = self.now.metrics.get(name), "kept", ""
        blocked = self.settings.reason(name)
        if before is None and after is None and name not in self.known_metrics():
            status, why = "unknown", _near("metric", name, self.known_metrics() | self.now.metrics.keys())
        elif after is None:
            status, why = "not measured", "" if before is None else f"it was {told(before)} in {self._served}"
        elif blocked is not None:
            status, why = "not comparable", blocked
        elif any(_is_past(after, low, high) for low, high in bounds(required, before)):
            status, why = "broken", self._noise(name, before)
        elif before is None and self.was is not None and (required.fall, required.rise) != (None, None):
            why = f"{self._served} has no such number to compare with"
        else:
            why = self._tight(required, before)
        return Finding(consumer.name, consumer.owner, name, status, before, after, allowance(required, before), why)  # type: ignore[arg-type]

    @property
    def _served(self) -> str:
        assert self.was is not None
        return self.was.id

    def _noise(self, metric: str, before: float | None) -> str:
        interval = self.now.intervals.get(metric)
        if interval is None:
            return ""
        holds = before is not None and interval[0] <= before <= interval[1]
        ending = f", which {'holds' if holds else 'does not hold'} the old value" if before is not None else ""
        return f"its 95 % interval is {_ends(interval)}{ending}"

    def _tight(self, required: Requirement, before: float | None) -> str:
        """Of a kept promise: whether its tolerance is narrower than what chance alone moves."""
        interval = self.now.intervals.get(required.metric)
        shares = [share for share in (required.fall, required.rise) if share is not None]
        if interval is None or not before or not shares or min(shares) * abs(before) >= (interval[1] - interval[0]) / 2:
            return ""
        return f"the tolerance is narrower than chance: its 95 % interval is {_ends(interval)}"


def bounds(required: Requirement, before: float | None) -> list[tuple[float | None, float | None]]:
    """Lowest and highest values that are allowed, one pair for each kind of bound."""
    found = [(required.at_least, required.at_most)]
    if before is not None:
        low = None if required.fall is None else before - required.fall * abs(before)
        high = None if required.rise is None else before + required.rise * abs(before)
        found.append((low, high))
    return found


def _is_past(value: float, low: float | None, high: float | None) -> bool:
    slack = _ROUNDING * abs(value)
    return (low is not None and value < low - slack) or (high is not None and value > high + slack)


def allowance(required: Requirement, before: float | None) -> str:
    """The bounds in words, with the numbers that shares come to."""
    parts = []
    for share, word, sign, bound in (
        (required.fall, "fall", -1, "at least"),
        (required.rise, "rise", 1, "at most"),
    ):
        if share is not None:
            limit = "" if before is None else f", to {bound} {told(before + sign * share * abs(before))}"
            parts.append(f"may {word} {100 * share:g} %{limit}")
    parts += [f"at least {told(required.at_least)}"] if required.at_least is not None else []
    parts += [f"at most {told(required.at_most)}"] if required.at_most is not None else []
    return "; ".join(parts)


def _near(kind: str, name: str, known: Any, *, lost: bool = False) -> str:
    near = near_names(name, known)
    said = f"the {kind} has disappeared" if lost else f"no release has this {kind}"
    return f"{said}; near: {', '.join(near)}" if near else said


def told(value: float | str | None) -> str:
    """A number as tables show it: counts whole, the rest with four decimals, small ones with three digits."""
    if value is None or isinstance(value, str):
        return value or "absent"
    if value == int(value) and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def change_of(was: float | str | None, now: float | str | None) -> str:
    """By how much of its old size a number changed, in words; empty where that means nothing."""
    if isinstance(was, str) or isinstance(now, str) or not was or now is None:
        return ""
    return f"{100 * (now - was) / abs(was):+.2f} %"


def _ends(interval: Interval) -> str:
    return f"{told(interval[0])} to {told(interval[1])}"
