"""Whether two releases' numbers may be compared at all, and what differed in how they came about.

A metric whose meaning changed is never compared: its *family* (`retrieval`, `scores.buy_30d`) is blocked, with the
reason. What moves with every day's log, such as the cutoff, is compared and said.
The k of a metric is in its name: ndcg_at_10 and ndcg_at_20 are two metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sonder.history.cutoffs import test_cutoff_us
from sonder.releases.facts import ReleaseFacts
from sonder.releases.manifest import Manifest

BY_PROTOCOL = ("retrieval", "interests")  # measured on the split of the evaluation protocol


@dataclass(frozen=True)
class Comparability:
    """`blocked`: family of metrics -> why it is not compared; `notes`: what else differed, a sentence each."""

    blocked: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def reason(self, metric: str) -> str | None:
        """Why a metric cannot be compared; None if it can."""
        return next((why for family, why in self.blocked.items() if metric.startswith(f"{family}.")), None)


def compare_settings(was: ReleaseFacts, now: ReleaseFacts) -> Comparability:
    """What stands between the numbers of the served release and those of another."""
    blocked = _blocked(was, now)
    notes = [f"{family}.* is not compared: {why}" for family, why in blocked.items()]
    for name, before, after in (
        ("log read", _day(was.manifest.as_of_us), _day(now.manifest.as_of_us)),
        ("test window", window_of(was.manifest), window_of(now.manifest)),
        ("snapshot", was.manifest.snapshot, now.manifest.snapshot),
        ("code", was.manifest.code_version, now.manifest.code_version),
    ):
        if before != after:
            notes.append(f"{name}: {before} in {was.id}, {after} in {now.id}")
    return Comparability(blocked, tuple(notes))


def _blocked(was: ReleaseFacts, now: ReleaseFacts) -> dict[str, str]:
    blocked: dict[str, str] = {}
    before, after = protocol_of(was.manifest), protocol_of(now.manifest)
    if before != after:
        blocked = dict.fromkeys(BY_PROTOCOL, f"the protocol was {before} and is {after}")
    for name in sorted(was.fields.keys() & now.fields.keys()):
        if name.startswith("scores.") and was.fields[name] != now.fields[name]:
            blocked[name] = f"the score was {was.fields[name]} and is {now.fields[name]}"
    if any(name.startswith("stability.") for name in now.metrics) and now.manifest.parent != was.id:
        blocked["stability"] = f"{now.id} was compared with its parent {now.manifest.parent}, which is not {was.id}"
    return blocked


def protocol_of(manifest: Manifest) -> str:
    """The evaluation protocol with the length of its test, which hit rates grow with."""
    evaluation: dict[str, Any] = manifest.config["evaluation"]
    if evaluation["protocol"] == "temporal":
        return f"temporal, tested on {evaluation['test_days']} days"
    return str(evaluation["protocol"])


def window_of(manifest: Manifest) -> str:
    """From when to when, exclusive."""
    evaluation: dict[str, Any] = manifest.config["evaluation"]
    if evaluation["protocol"] != "temporal":
        return "each user's last item"
    start = test_cutoff_us(manifest.as_of_us, int(evaluation["test_days"]))
    return f"{_day(start)} to {_day(manifest.as_of_us)}"


def _day(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1_000_000, tz=UTC):%Y-%m-%d}"
