"""Two releases side by side, in numbers: metrics, inputs, configuration, fields. Pure, of two sets of facts.

A metric is better or worse only where its name says which way is better (releases.metric_meaning) and where its
numbers mean the same in both (releases.comparability). `is_chance`: each one's 95 % interval holds the other's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sonder.releases.comparability import compare_settings
from sonder.releases.facts import Interval, ReleaseFacts
from sonder.releases.metric_meaning import better

Judgement = Literal["better", "worse", "same", "moved", "only in one", "not comparable"]
_ABOUT = {"made": "created_at", "code": "code_version", "parent": "parent", "snapshot": "snapshot"}
_NOT_SETTINGS = ("workspace", "consumers", "serving")  # of the configuration: where things are, not what was built


@dataclass(frozen=True)
class MetricChange:
    """One metric of both releases. `moved`: it changed, and no way of it is better."""

    name: str
    was: float | None
    now: float | None
    judgement: Judgement
    interval_was: Interval | None = None
    interval_now: Interval | None = None
    why: str = ""  # of what is not comparable

    @property
    def relative(self) -> float | None:
        """Change as a share of the old size; None where that means nothing."""
        if self.was is None or self.now is None or self.was == 0:
            return None
        return (self.now - self.was) / abs(self.was)

    @property
    def is_chance(self) -> bool:
        """Whether both intervals hold the other's value: nothing that chance could not do."""
        if self.was is None or self.now is None or self.interval_was is None or self.interval_now is None:
            return False
        return _holds(self.interval_now, self.was) and _holds(self.interval_was, self.now)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"relative": self.relative, "is_chance": self.is_chance}


@dataclass(frozen=True)
class ValueChange:
    """Anything else that has a name and differs; None: it is not there."""

    name: str
    was: Any
    now: Any


@dataclass(frozen=True)
class Differences:
    """All of it; `notes` say how the measurements of the two differ."""

    was: str
    now: str
    notes: tuple[str, ...]
    about: tuple[ValueChange, ...]  # of the releases themselves, also where they agree
    metrics: tuple[MetricChange, ...]  # by name
    config: tuple[ValueChange, ...]  # keys that differ, dotted
    inputs: tuple[ValueChange, ...]  # of the snapshot's manifest, keys that differ
    fields: tuple[ValueChange, ...]  # of profiles, that differ

    def count(self, judgement: Judgement) -> int:
        return sum(change.judgement == judgement for change in self.metrics)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": [change.to_dict() for change in self.metrics]}


def compare(was: ReleaseFacts, now: ReleaseFacts) -> Differences:
    """What is different in `now`, seen from `was`."""
    settings = compare_settings(was, now)
    names = sorted(was.metrics.keys() | now.metrics.keys())
    return Differences(
        was=was.id,
        now=now.id,
        notes=settings.notes,
        about=tuple(
            ValueChange(name, getattr(was.manifest, key), getattr(now.manifest, key)) for name, key in _ABOUT.items()
        ),
        metrics=tuple(_metric(name, was, now, settings.reason(name)) for name in names),
        config=_changes(_settings(was.manifest.config), _settings(now.manifest.config)),
        inputs=_changes(flatten(was.manifest.inputs), flatten(now.manifest.inputs)),
        fields=_changes(was.fields, now.fields),
    )


def _metric(name: str, was: ReleaseFacts, now: ReleaseFacts, blocked: str | None) -> MetricChange:
    before, after = was.metrics.get(name), now.metrics.get(name)
    return MetricChange(
        name, before, after, _judged(name, before, after, blocked),
        was.intervals.get(name), now.intervals.get(name), blocked or "",
    )  # fmt: skip


def _judged(name: str, before: float | None, after: float | None, blocked: str | None) -> Judgement:
    if blocked is not None:
        return "not comparable"
    if before is None or after is None:
        return "only in one"
    if before == after:
        return "same"
    way = better(name)
    if way is None:
        return "moved"
    return "better" if (after > before) == (way == "higher") else "worse"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({name: value for name, value in config.items() if name not in _NOT_SETTINGS})


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[ValueChange, ...]:
    names = [*was, *(name for name in now if name not in was)]
    return tuple(ValueChange(name, was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name))


def flatten(content: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested JSON by dotted path; entries of a list of objects go by their `name`, `path` or number."""
    if isinstance(content, Mapping):
        entries = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple) and any(isinstance(entry, Mapping) for entry in content):
        entries = [(_name_of(entry, place), entry) for place, entry in enumerate(content)]
    else:
        return {path: content}
    flat: dict[str, Any] = {}
    for name, value in entries:
        flat |= flatten(value, f"{path}.{name}" if path else name)
    return flat


def _name_of(entry: Any, place: int) -> str:
    named = entry.get("name", entry.get("path")) if isinstance(entry, Mapping) else None
    return str(place if named is None else named)


def _holds(interval: Interval, value: float) -> bool:
    return interval[0] <= value <= interval[1]
