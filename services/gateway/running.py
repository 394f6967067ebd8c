"""The experiments that run, as this gateway can serve them: follows experiments/RUNNING as releases are followed.

An experiment is live here when every release of its arms is open, for all arms at once: else one arm would lose its
first users and the arms were no longer alike. Its share follows the ramp; when its days are over nobody is assigned
any more, and the first gateway to see that writes it down.
Limits: what cannot be read leaves everything as it is; a rule that the served release cannot evaluate holds for nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from services.gateway.eligibility import Eligibility, nobody
from services.gateway.engine import Engine
from sonder.core.errors import InvalidRule, NotFound, SonderError
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import Allocation
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Ranking
from sonder.experiments.versions import Running, Version

logger = logging.getLogger("sonder")
ASSIGNED, NOT_IN_SHARE, NOT_ELIGIBLE, NOT_SERVED = "assigned", "not in share", "not eligible", "not served here yet"


@dataclass(eq=False)
class Live:
    """One experiment that assigns users here. Only `share` changes."""

    version: Version
    allocation: Allocation
    engines: Mapping[str, Engine]  # of each arm; empty where none names a release
    rankings: Mapping[str, Ranking | None]  # of each arm
    eligible: Callable[[str], bool] | None
    share: float

    @cached_property
    def name(self) -> str:
        return self.version.name

    @property
    def is_interleaved(self) -> bool:
        return self.version.experiment.method == "interleave"

    @property
    def decides_release(self) -> bool:
        """Of every answer; an interleaved one decides recommendations alone."""
        return bool(self.engines) and not self.is_interleaved

    def hold(self, user_id: str) -> str | None:
        """The user's arm; None for who does not take part."""
        if not self.allocation.is_in(user_id, self.share) or (self.eligible is not None and not self.eligible(user_id)):
            return None
        return self.allocation.arm_of(user_id)


class RunningExperiments:
    """`look` reads files, in a thread; all else is of the event loop."""

    def __init__(self, workspace: Workspace, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._workspace, self._now = workspace, now
        self._file = Running.file(workspace)
        self._file_version: str | None = None
        self.running = Running()
        self._lives: dict[str, Live] = {}
        self._rules: dict[tuple[str, str], tuple[Engine, Callable[[str], bool]]] = {}  # experiment, rule -> of engine

    def look(self, served: Engine) -> None:
        """Read RUNNING if it changed, and prepare the rules for the served release."""
        try:
            found = self._file.read_if_changed(self._file_version)
        except NotFound:
            self.running, self._file_version = Running(), None
        else:
            if found is not None:
                self.running, self._file_version = Running.parse(found[0]), found[1]
        self.prepare(served)

    def is_prepared(self, served: Engine) -> bool:
        """Whether every rule is there for the served release."""
        return all(key in self._rules and self._rules[key][0] is served for key in self._keys())

    def prepare(self, served: Engine) -> None:
        """Make what is missing; reads files."""
        rules = dict(self._rules)
        for key in self._keys():
            if key not in rules or rules[key][0] is not served:
                rules[key] = served, self._rule(served, *key)
        self._rules = {key: rules[key] for key in self._keys()}

    def lives(self, served: Engine, beside: Mapping[str, Engine]) -> list[Live]:
        """What assigns users now, the same objects as before where nothing but a share changed."""
        engines, now = {served.release_id: served, **beside}, self._now()
        found: dict[str, Live] = {}
        for version in self.running.experiments:
            rule = self._rules.get((version.name, version.experiment.eligibility or ""))
            is_open = all(release in engines for release in version.releases.values())
            has_rule = version.experiment.eligibility is None or (rule is not None and rule[0] is served)
            if version.is_over(now) or not is_open or not has_rule:
                continue
            made = self._live(version, engines, None if rule is None else rule[1], version.share_at(now))
            before = self._lives.get(version.name)
            if before is not None and _is_same(before, made):
                before.share, made = made.share, before
            found[version.name] = made
        self._lives = found
        return list(found.values())

    def end_what_is_over(self, by: str) -> None:
        """Stop experiments whose days are over, where nobody else has; reads and writes files."""
        for version in self.running.experiments:
            if version.is_over(self._now()):
                reason = f"its {version.experiment.max_days:g} days are over"
                try:
                    Experiments(self._workspace, now=self._now).stop(version.name, by=by, reason=reason)
                    logger.warning("experiment %s stopped: %s", version.name, reason)
                except SonderError as error:  # another gateway was faster, or the next look tries again
                    logger.info("experiment %s: %s", version.name, error.found)

    # -- what callers ask ---------------------------------------------------------------------------------------------

    def told(self) -> list[dict[str, Any]]:
        """Every running experiment, with all that a client needs to assign users by itself."""
        now = self._now()
        return [
            _told(version, version.share_at(now)) for version in self.running.experiments if not version.is_over(now)
        ]

    def assignment(self, name: str, user_id: str) -> dict[str, Any]:
        """Which arm a user is in, and why in none; exposes nobody. NotFound where no such experiment runs."""
        now, version = self._now(), self.running.find(name)
        if version is None or version.is_over(now):
            names = ", ".join(one.name for one in self.running.experiments if not one.is_over(now))
            raise NotFound(f"No experiment {name[:64]!r} is running", expected=f"one of {names}" if names else "")
        live, allocation, share = self._lives.get(name), version.allocation(), version.share_at(now)
        reason, arm = ASSIGNED, allocation.assign(user_id, share)
        if arm is None:
            reason = NOT_IN_SHARE
        elif live is None:
            reason, arm = NOT_SERVED, None
        elif live.eligible is not None and not live.eligible(user_id):
            reason, arm = NOT_ELIGIBLE, None
        return {
            "experiment": name,
            "version": version.version,
            "user_id": user_id,
            "arm": arm,
            "reason": reason,
            "share": share,
            "exposure": False,
        }

    # -- making them --------------------------------------------------------------------------------------------------

    def _keys(self) -> list[tuple[str, str]]:
        return [
            (one.name, one.experiment.eligibility) for one in self.running.experiments if one.experiment.eligibility
        ]

    def _rule(self, served: Engine, name: str, rule: str) -> Callable[[str], bool]:
        try:
            return Eligibility(served.rule(rule))
        except InvalidRule as error:
            logger.error("nobody is eligible for %s, %s: %s", name, served.release_id, error.found)
            return nobody

    def _live(
        self, version: Version, engines: Mapping[str, Engine], rule: Callable[[str], bool] | None, share: float
    ) -> Live:
        return Live(
            version=version,
            allocation=version.allocation(),
            engines={arm: engines[release] for arm, release in version.releases.items()},
            rankings={arm.name: arm.ranking for arm in version.experiment.arms},
            eligible=rule,
            share=share,
        )


def _is_same(before: Live, after: Live) -> bool:
    return (
        before.version == after.version
        and before.eligible is after.eligible
        and [id(one) for one in before.engines.values()] == [id(one) for one in after.engines.values()]
    )


def _told(version: Version, share: float) -> dict[str, Any]:
    one, allocation = version.experiment, version.allocation()
    weights = dict(zip(allocation.arms, allocation.weights, strict=True))
    return {
        "name": one.name,
        "version": version.version,
        "method": one.method,
        "hypothesis": one.hypothesis,
        "arms": [{"name": arm, "weight": weight} for arm, weight in weights.items()],
        "share": share,
        "layer": one.layer,
        "salt": allocation.salt,
        "layer_salt": allocation.layer_salt,
        "lower": allocation.lower,
        "eligibility": one.eligibility,
        "started_at": version.started_at,
        "ends_at": version.ends_at,
    }
