"""What is served beside the current release: a canary on trial, and releases that are served by their name alone.

`releases/CANARY` is one JSON file beside CURRENT, replaced whole: the trial that runs, the releases that are `also`
served (so that whoever reads them can move in their own time), and the trials that ended, newest first, with why.
A trial compares its candidate with one served release. Where another release is promoted meanwhile, it says nothing
of that one: `Canary.trial_beside` gives no trial then, and the first gateway that sees it ends it.
Releases that running experiments need are served beside it too (releases.reserved); a canary is refused while one of
them chooses users' releases, a shadow is not.
Who reads the candidate: users whose draw by the trial's salt is below the share. So a larger share keeps everybody who
was in a smaller one, on every gateway and in every process.
Limits: two writers at the same moment (a gateway rolls back while somebody types a command) are told apart by nothing
but a second look before the write; the later one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound
from sonder.core.ids import unit_draw
from sonder.core.workspace import Workspace
from sonder.releases.manifest import verify_files
from sonder.releases.registry import Gate, Registry
from sonder.releases.reserved import reserved_releases

CANARY = "CANARY"
CANARY_KEY = "sonder/canary/1/"
MOST_SERVED = 3  # the current release and two beside it: each has a store, stages and a refresh of its own
_MAX_ENDED = 50
Mode = Literal["canary", "shadow"]
State = Literal["rolled_back", "promoted", "stopped"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(_Frozen):
    """Past any of these the candidate is rolled back; each is judged once both arms have answered often enough."""

    p99_ratio: float = Field(2.0, gt=1, description="candidate's 99th percentile of latency over the served one's")
    degraded: float = Field(0.02, ge=0, le=1, description="share of degraded answers above the served one's")
    errors: float = Field(0.01, ge=0, le=1, description="share of failed answers above the served one's")
    psi: float = Field(0.25, gt=0, description="population stability index of any score between the arms")
    min_requests: int = Field(200, ge=50, description="answers of each arm before a verdict; users, for scores")


class Step(_Frozen):
    """One step of a ramp."""

    share: float = Field(gt=0, le=1)
    minutes: float = Field(gt=0, le=100_000)


class Trial(_Frozen):
    """One candidate beside the release that it is compared with."""

    id: str  # its counts lie under it
    candidate: str
    served: str
    mode: Mode
    share: float = Field(gt=0, le=1)  # of the users; in shadow mode, of whom the candidate answers unseen
    salt: str
    ramp: tuple[Step, ...] = ()  # the last share stays
    limits: Limits = Limits()
    started_at: datetime
    started_by: str
    reason: str

    def share_at(self, now: datetime) -> float:
        """The share at a moment; without a ramp it is the same at all."""
        left = (now - self.started_at) / timedelta(minutes=1)
        for step in self.ramp:
            if left < step.minutes:
                return step.share
            left -= step.minutes
        return self.ramp[-1].share if self.ramp else self.share

    def draw(self) -> Callable[[str], float]:
        """Where in [0, 1) a user stands; in the trial where that is below the share."""
        return unit_draw(f"{CANARY_KEY}{self.salt}/")


class Ended(_Frozen):
    """A trial that is over, and why."""

    trial: Trial
    state: State
    ended_at: datetime
    ended_by: str
    reason: str
    numbers: dict[str, Any] = Field(default_factory=dict)  # what was compared last


class Canary(_Frozen):
    """The file."""

    running: Trial | None = None
    also: tuple[str, ...] = ()
    ended: tuple[Ended, ...] = ()

    @classmethod
    def read(cls, workspace: Workspace) -> Canary:
        """As it is now; empty where nothing was ever served beside the current release."""
        file = workspace.releases / CANARY
        try:
            return cls.model_validate_json(file.read_bytes())
        except NotFound:
            return cls()
        except ValidationError as error:
            raise ArtefactMismatch(
                f"releases/{CANARY} cannot be read: {error.error_count()} places are wrong, the first is "
                f"{'/'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}",
                expected="what `sonder canary` writes",
                do="Remove the file; the current release is served then, and nothing beside it.",
            ) from error

    def trial_beside(self, current: str) -> Trial | None:
        """The trial, as long as what it is compared with is what is served."""
        return self.running if self.running is not None and self.running.served == current else None

    def beside(self, current: str) -> tuple[str, ...]:
        """Every release that is served beside the current one, once each."""
        trial = self.trial_beside(current)
        wanted = dict.fromkeys((*self.also, *(() if trial is None else (trial.candidate,))))
        return tuple(release for release in wanted if release != current)


def served_beside(workspace: Workspace, current: str) -> tuple[str, ...]:
    """Every release that is served beside the current one, once each: of CANARY, and of running experiments."""
    wanted = dict.fromkeys((*Canary.read(workspace).beside(current), *_reserved(workspace)))
    return tuple(release for release in wanted if release != current)


class Canaries:
    """What is served beside the current release of a workspace, and how that changes."""

    def __init__(self, workspace: Workspace, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._workspace, self._registry, self._now = workspace, Registry(workspace), now

    def read(self) -> Canary:
        return Canary.read(self._workspace)

    def start(
        self,
        candidate: str,
        *,
        share: float = 0.05,
        mode: Mode = "canary",
        ramp: Sequence[Step] = (),
        limits: Limits | None = None,
        salt: str | None = None,
        by: str,
        reason: str,
    ) -> Trial:
        """Verify the candidate against its digests, as a promotion does, and put it on trial."""
        canary, current = self.read(), self._current()
        if canary.trial_beside(current) is not None and canary.running is not None:
            raise InvalidRequest(
                f"The canary of {canary.running.candidate} is running",
                expected="one at a time",
                do="`sonder canary stop` or `sonder canary promote` ends it.",
            )
        if candidate == current:
            raise InvalidRequest(f"{candidate} is the current release", expected="another release as candidate")
        if mode == "canary" and (experiments := reserved_releases(self._workspace)):
            raise InvalidRequest(
                f"The experiment {', '.join(experiments)} chooses the release of its users, and so would a canary",
                expected="one of them at a time",
                do="`sonder experiment stop` ends the experiment; --shadow answers nobody and may run beside it.",
            )
        self._verify(candidate)
        check_room(current, (*canary.also, candidate, *_reserved(self._workspace)))
        now = self._now().replace(microsecond=0)
        trial = Trial(
            id=f"{now:%Y%m%dT%H%M%S}-{candidate}",
            candidate=candidate,
            served=current,
            mode=mode,
            share=ramp[0].share if ramp else share,
            salt=salt or f"{current}/{candidate}",
            ramp=tuple(ramp),
            limits=limits or Limits(),
            started_at=now,
            started_by=by,
            reason=reason,
        )
        if canary.running is not None:  # what it was compared with is served no more
            canary = _ended(canary, "stopped", now, by, f"another release was promoted: {current}", {})
        self._write(canary.model_copy(update={"running": trial}))
        return trial

    def set_share(self, share: float) -> Trial:
        """From now on this share, whatever the ramp had said."""
        canary, trial = self._running()
        changed = Trial.model_validate({**trial.model_dump(), "share": share, "ramp": ()})
        self._write(canary.model_copy(update={"running": changed}))
        return changed

    def end(
        self, trial_id: str, state: State, *, by: str, reason: str, numbers: dict[str, Any] | None = None
    ) -> Ended | None:
        """End this trial; None where it has ended already or another one runs, and then nothing changes."""
        canary = self.read()
        if canary.running is None or canary.running.id != trial_id:
            return None
        after = _ended(canary, state, self._now(), by, reason, numbers or {})
        self._write(after)
        return after.ended[0]

    def stop(self, *, by: str, reason: str) -> Ended:
        _, trial = self._running()
        ended = self.end(trial.id, "stopped", by=by, reason=reason)
        assert ended is not None, "it was running a moment ago"
        return ended

    def promote(self, *, by: str, reason: str, gate: Gate | None = None) -> Ended:
        """Serve the candidate to everybody, if the gate lets it; the trial has ended well."""
        _, trial = self._running()
        self._registry.promote(trial.candidate, reason=reason, gate=gate)
        ended = self.end(trial.id, "promoted", by=by, reason=reason)
        if ended is None:  # a gateway saw the promotion first
            ended = self.read().ended[0]
        return ended

    def also(self, release_id: str) -> Canary:
        """Serve a release by its name, beside the current one; nothing changes where it is served so already."""
        canary, current = self.read(), self._current()
        self._verify(release_id)
        trial = canary.trial_beside(current)
        on_trial = () if trial is None else (trial.candidate,)
        check_room(current, (*canary.also, release_id, *on_trial, *_reserved(self._workspace)))
        return self._write(canary.model_copy(update={"also": tuple(dict.fromkeys((*canary.also, release_id)))}))

    def end_also(self, release_id: str) -> Canary:
        """Serve a release by its name no more."""
        canary = self.read()
        if release_id not in canary.also:
            raise NotFound(
                f"{release_id} is not served beside the current release",
                expected=", ".join(canary.also) or "one that `sonder release also` named",
            )
        return self._write(canary.model_copy(update={"also": tuple(r for r in canary.also if r != release_id)}))

    def _running(self) -> tuple[Canary, Trial]:
        canary = self.read()
        if canary.running is None:
            raise NotFound("No canary is running", do="`sonder canary start RELEASE` starts one.")
        return canary, canary.running

    def _current(self) -> str:
        current = self._registry.current()
        if current is None:
            raise NotFound(
                "No release is promoted, so there is nothing to compare with", do="`sonder release promote ID` first."
            )
        return current.release

    def _verify(self, release_id: str) -> None:
        verify_files(self._workspace.release(release_id), self._registry.show(release_id))

    def _write(self, canary: Canary) -> Canary:
        (self._workspace.releases / CANARY).write_json(canary.model_dump(mode="json"))
        return canary


def _ended(canary: Canary, state: State, at: datetime, by: str, reason: str, numbers: dict[str, Any]) -> Canary:
    assert canary.running is not None
    at = at.replace(microsecond=0)
    over = Ended(trial=canary.running, state=state, ended_at=at, ended_by=by, reason=reason, numbers=numbers)
    return canary.model_copy(update={"running": None, "ended": (over, *canary.ended[: _MAX_ENDED - 1])})


def _reserved(workspace: Workspace) -> list[str]:
    return [release for releases in reserved_releases(workspace).values() for release in releases]


def check_room(current: str, beside: Sequence[str]) -> None:
    """InvalidRequest where more releases would be served than MOST_SERVED."""
    served = list(dict.fromkeys((current, *beside)))
    if len(served) > MOST_SERVED:
        raise InvalidRequest(
            f"{len(served)} releases would be served at once: {', '.join(served)}",
            expected=f"{MOST_SERVED} at most, each has a store and models in memory",
            do="End one with `sonder canary stop`, `sonder release also ID --end` or `sonder experiment stop`.",
        )
