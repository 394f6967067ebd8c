"""An experiment as it stands: what it is, whether it runs, whom it may have; every change is another version.

experiments/<name>/v<NNN>.json   one version, never changed afterwards
experiments/RUNNING              the running ones as they are now, replaced whole; what gateways and clients follow
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import Allocation
from sonder.experiments.specification import Experiment, Ranking
from sonder.releases.reserved import RUNNING

State = Literal["planned", "running", "stopped"]
INTERLEAVED = "interleaved"  # what answers the users of an interleaved experiment: both arms in one list
AS_ASKED = Ranking()  # what a caller gets who wishes nothing


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Version(_Frozen):
    """One version of an experiment."""

    experiment: Experiment
    version: int = Field(ge=1)
    state: State
    lower: float | None = None  # of its interval of the layer: [lower, upper), upper - lower is the experiment's share
    upper: float | None = None
    started_at: datetime | None = None
    share: float | None = Field(None, gt=0, le=1, description="set by hand; the ramp says nothing any more")
    releases: dict[str, str] = Field({}, description="what answers each arm, where any arm names a release")
    changed_at: datetime
    changed_by: str
    reason: str

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def ends_at(self) -> datetime | None:
        """When it is over at the latest; None before it started."""
        return None if self.started_at is None else self.started_at + timedelta(days=self.experiment.max_days)

    def is_over(self, now: datetime) -> bool:
        """Whether it has run for as long as it may."""
        return self.ends_at is not None and now >= self.ends_at

    def share_at(self, now: datetime) -> float:
        """The share of all users at a moment; 0 where it does not run. The last share of a ramp stays."""
        if self.state != "running" or self.started_at is None or self.is_over(now):
            return 0.0
        if self.share is not None:
            return self.share
        left = (now - self.started_at) / timedelta(hours=1)
        for step in self.experiment.ramp:
            if left < step.hours:
                return step.share
            left -= step.hours
        return self.experiment.ramp[-1].share if self.experiment.ramp else self.experiment.share

    def allocation(self) -> Allocation:
        """Enough to assign anybody; an interleaved experiment has one arm for all of its users."""
        lower = self.lower or 0.0
        if self.experiment.method == "split":
            return Allocation.of(self.experiment, lower=lower)
        one = self.experiment
        return Allocation(one.name, one.salt, one.layer_salt, lower, (INTERLEAVED,), (1.0,))


class Running(_Frozen):
    """The file RUNNING."""

    experiments: tuple[Version, ...] = ()
    releases: dict[str, tuple[str, ...]] = {}  # what sonder.releases.reserved reads

    @classmethod
    def of(cls, experiments: tuple[Version, ...]) -> Running:
        named = {one.name: tuple(dict.fromkeys(one.releases.values())) for one in experiments if one.releases}
        return cls(experiments=experiments, releases=named)

    @classmethod
    def file(cls, workspace: Workspace) -> Folder:
        return workspace.experiments / RUNNING

    @classmethod
    def read(cls, workspace: Workspace) -> Running:
        """As it is now; empty where no experiment ever ran."""
        try:
            return cls.parse(cls.file(workspace).read_bytes())
        except NotFound:
            return cls()

    @classmethod
    def parse(cls, content: bytes) -> Running:
        """ArtefactMismatch where it is not what `sonder experiment` writes."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtefactMismatch(
                f"experiments/{RUNNING} cannot be read: {error.error_count()} places are wrong, the first is "
                f"{'/'.join(map(str, first['loc']))}: {first['msg']}",
                expected="what `sonder experiment` writes",
                do="Remove the file; no experiment runs then, and `sonder experiment start` starts one again.",
            ) from error

    def find(self, name: str) -> Version | None:
        """None where it does not run."""
        return next((one for one in self.experiments if one.name == name), None)

    def with_version(self, version: Version) -> Running:
        """After a change: in its place, at the end where it is new, gone where it was stopped."""
        changed = {one.name: one for one in self.experiments} | {version.name: version}
        return Running.of(tuple(one for one in changed.values() if one.state == "running"))
