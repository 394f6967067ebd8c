"""The experiments of a workspace: planned, started, raised, stopped; each change is a version and none is removed.

A change is made under a lock of the workspace: first the version's file, then RUNNING. A process that dies in between
leaves a version that says more than RUNNING does; what runs is what RUNNING says, and the same command again mends it.
Where any arm names a release, all arms get one for good: an arm without is answered by what was served at the start,
also after a promotion, so that what is compared stays the same.
Limits: a stopped experiment stays stopped, another name is another draw. Who was in a stopped experiment of a layer is
free for the next one, whatever it has left behind in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound, NotReady
from sonder.core.locking import exclusive
from sonder.core.storage import Folder, json_bytes
from sonder.core.workspace import Workspace
from sonder.experiments.specification import Experiment
from sonder.experiments.starting import aspects, check_arms_differ, check_change, check_overlap, free_interval
from sonder.experiments.versions import Running, Version
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_fields import schema_of
from sonder.releases.artefacts import Release
from sonder.releases.canary import Canary, check_room, served_beside
from sonder.releases.manifest import verify_files
from sonder.releases.registry import Registry
from sonder.segments.rules.rule import Rule

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"v(\d{3,})\.json")
_LOCK_S = 30.0


class Experiments:
    """What is asked of users of a workspace, and how that changes."""

    def __init__(self, workspace: Workspace, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._workspace, self._registry, self._now = workspace, Registry(workspace), now

    # -- what there is ------------------------------------------------------------------------------------------------

    def running(self) -> Running:
        """What assigns users now."""
        return Running.read(self._workspace)

    def show(self, name: str) -> Version:
        """The newest version; NotFound names the experiments that there are."""
        numbers = self._numbers(name)
        if not numbers:
            names = [one.name for one in self.list()]
            raise NotFound(
                f"No experiment {name[:64]!r}",
                expected="one of " + ", ".join(names) if names else "an experiment that was planned or started",
            )
        return self._read(name, numbers[-1])

    def history(self, name: str) -> Sequence[Version]:
        """Every version, oldest first; NotFound where there is none."""
        self.show(name)
        return [self._read(name, number) for number in self._numbers(name)]

    def list(self) -> list[Version]:
        """The newest version of every experiment, by name."""
        names = [folder.name for folder in self._workspace.experiments.children() if _NAME.fullmatch(folder.name)]
        return [self._read(name, numbers[-1]) for name in names if (numbers := self._numbers(name))]

    # -- changes ------------------------------------------------------------------------------------------------------

    def plan(self, experiment: Experiment, *, by: str = "", reason: str = "planned") -> Version:
        """Write it down before it starts, or change what may be changed of a running one (starting.check_change).

        Nothing is written where nothing changes.
        """
        with self._changing():
            running, before = self.running(), self._newest(experiment.name)
            if before is not None and before.state == "stopped":
                raise _is_stopped(before)
            current = running.find(experiment.name)
            if current is not None:
                check_change(current.experiment, experiment)
                return self._changed(current, by, reason, experiment=experiment)
            if before is not None and before.experiment == experiment and before.state == "planned":
                return before
            return self._write(experiment, before, by, reason, state="planned")

    def start(self, what: Experiment | str, *, by: str, reason: str) -> Version:
        """Verify the arms' releases, find free users, and run it: gateways assign from their next look on.

        InvalidRequest where it cannot run beside what is served and what runs; see experiments.starting.
        """
        with self._changing():
            running = self.running()
            name = what if isinstance(what, str) else what.name
            before = self._newest(name) if isinstance(what, Experiment) else self.show(name)
            if running.find(name) is not None:
                raise InvalidRequest(f"{name} is running", do="`sonder experiment stop` ends it.")
            if before is not None and before.state == "stopped":
                raise _is_stopped(before)
            experiment = what if isinstance(what, Experiment) else self.show(name).experiment
            check_overlap(experiment, running.experiments)
            releases = self._releases(experiment)
            check_arms_differ(experiment, releases)
            self._check_rule(experiment)
            lower, upper = free_interval(experiment, running.experiments)
            return self._write(
                experiment,
                before,
                by,
                reason,
                state="running",
                lower=lower,
                upper=upper,
                started_at=self._now(),
                releases=releases,
            )

    def set_share(self, name: str, share: float, *, by: str, reason: str) -> Version:
        """From now on this share of all users, whatever the ramp says. It only rises, so that it moves nobody."""
        with self._changing():
            current = self._running(name)
            least, most = current.share_at(self._now()), current.experiment.share
            if not least <= share <= most:
                raise InvalidRequest(
                    f"A share of {share:g} for {name}",
                    expected=f"between {least:g}, its share now, and {most:g}, what the experiment asked for",
                    do="A smaller share would take users out of their arms; `sonder experiment stop` ends it for all.",
                )
            return self._changed(current, by, reason, share=share)

    def stop(self, name: str, *, by: str, reason: str) -> Version:
        """Assign nobody any more; what was recorded stays."""
        with self._changing():
            return self._changed(self._running(name), by, reason, state="stopped")

    # -- checks -------------------------------------------------------------------------------------------------------

    def _releases(self, experiment: Experiment) -> dict[str, str]:
        """What answers each arm; empty where no arm names a release. Verified, and there is room for all."""
        if "release" not in aspects(experiment):
            return {}
        current = self._current()
        trial = Canary.read(self._workspace).trial_beside(current)
        if trial is not None and trial.mode == "canary":
            raise InvalidRequest(
                f"The canary of {trial.candidate} chooses the release of its users, and so would {experiment.name}",
                expected="one of them at a time",
                do="`sonder canary stop` or `sonder canary promote` ends the canary.",
            )
        releases = {arm.name: arm.release or current for arm in experiment.arms}
        for release in dict.fromkeys(releases.values()):
            verify_files(self._workspace.release(release), self._registry.show(release))
        check_room(current, (*served_beside(self._workspace, current), *releases.values()))
        return releases

    def _check_rule(self, experiment: Experiment) -> None:
        """InvalidRule where the served release does not have what the rule names."""
        if experiment.eligibility is not None:
            release = Release.open(self._workspace, self._current())
            Rule.parse(experiment.eligibility, schema_of(Vocabulary.load(release.items), release.base_rates()))

    def _current(self) -> str:
        current = self._registry.current()
        if current is None:
            raise NotFound("No release is promoted, so nobody is answered", do="`sonder release promote ID` first.")
        return current.release

    def _running(self, name: str) -> Version:
        current = self.running().find(name)
        if current is None:
            newest = self.show(name)
            raise InvalidRequest(f"{name} is {newest.state}", expected="an experiment that is running")
        return current

    # -- files --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change of a workspace's experiments at a time."""
        try:
            with exclusive(self._workspace.experiments / ".changing", timeout_s=_LOCK_S):
                yield
        except TimeoutError as error:
            raise NotReady("Another process is changing experiments", do="Try again shortly.") from error

    def _changed(self, current: Version, by: str, reason: str, **changes: Any) -> Version:
        fields = {name: getattr(current, name) for name in ("lower", "upper", "started_at", "share", "releases")}
        experiment = changes.pop("experiment", current.experiment)
        return self._write(experiment, current, by, reason, **{"state": "running", **fields, **changes})

    def _write(self, experiment: Experiment, before: Version | None, by: str, reason: str, **fields: Any) -> Version:
        """The next version, and RUNNING where it says something of that."""
        numbers = self._numbers(experiment.name)
        version = Version(
            experiment=experiment,
            version=numbers[-1] + 1 if numbers else 1,
            changed_at=self._now(),
            changed_by=by,
            reason=reason,
            **fields,
        )
        if before is not None and _content(before) == _content(version):
            version = before
        else:
            self._file(version.name, version.version).create_bytes(json_bytes(version.model_dump(mode="json")))
        running = self.running()
        if (after := running.with_version(version)) != running:
            Running.file(self._workspace).write_json(after.model_dump(mode="json"))
        return version

    def _newest(self, name: str) -> Version | None:
        numbers = self._numbers(name)
        return self._read(name, numbers[-1]) if numbers else None

    def _numbers(self, name: str) -> Sequence[int]:
        if not _NAME.fullmatch(name):
            return []
        found = (_VERSION.fullmatch(file.name) for file in (self._workspace.experiments / name).children())
        return sorted(int(match.group(1)) for match in found if match)

    def _read(self, name: str, number: int) -> Version:
        file = self._file(name, number)
        try:
            return Version.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArtefactMismatch(f"{file} is no version of an experiment: {error.errors()[0]['msg']}") from error

    def _file(self, name: str, number: int) -> Folder:
        return self._workspace.experiments / name / f"v{number:03d}.json"


def _content(version: Version) -> dict[str, Any]:
    return version.model_dump(exclude={"version", "changed_at", "changed_by", "reason"})


def _is_stopped(version: Version) -> InvalidRequest:
    return InvalidRequest(
        f"{version.name} was stopped at {version.changed_at:%Y-%m-%d %H:%M} ({version.reason})",
        expected="an experiment under a name that was never used: another name is another draw",
    )
