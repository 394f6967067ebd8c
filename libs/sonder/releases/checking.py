"""Ask the gate about a release of a workspace: read what there is to know of both, then judge (releases.gate)."""

from __future__ import annotations

from dataclasses import dataclass

from sonder.core.errors import ConfigurationError, PromotionRefused, SonderError
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.releases.consumers import Consumers
from sonder.releases.current import GateRecord
from sonder.releases.facts import read_facts
from sonder.releases.gate import Finding, Verdict, judge
from sonder.releases.registry import Registry


def check(workspace: Workspace, consumers: Consumers, release_id: str, against: str | None) -> Verdict:
    """Whether a release keeps what its consumers rely on; `against` None: compared with nothing."""
    now = read_facts(Release.open(workspace, release_id))
    was = None if against is None else read_facts(Release.open(workspace, against))
    return judge(consumers, now, was, lambda: known_metrics(workspace) | now.metrics.keys())


def known_metrics(workspace: Workspace) -> set[str]:
    """Names of metrics that any release of the workspace has."""
    return {name for manifest in Registry(workspace).list() for name in manifest.metrics}


@dataclass(frozen=True)
class Gate:
    """What `Registry.promote` asks. `forced_by`: who promotes whatever the gate says; the record tells."""

    workspace: Workspace
    consumers: Consumers
    forced_by: str | None = None

    def __call__(self, release_id: str, served_id: str) -> GateRecord:
        try:
            verdict = check(self.workspace, self.consumers, release_id, served_id)
        except SonderError as error:  # the served release is damaged or gone, say: no reason to keep serving it
            if self.forced_by is None:
                raise
            return GateRecord(served_id, 0, self.forced_by, (f"nothing was checked: {error}",))
        if self.forced_by is None:
            require_known(verdict)
            require_kept(verdict)
            return GateRecord(served_id, len(verdict.findings))
        overridden = tuple(finding.sentence for finding in verdict.refusals)
        return GateRecord(served_id, len(verdict.findings), self.forced_by if overridden else None, overridden)


def require_known(verdict: Verdict) -> None:
    """ConfigurationError if the consumers file names what no release ever had."""
    if verdict.unknown:
        raise ConfigurationError(
            "The consumers file asks for what no release has: " + "; ".join(_asked(one) for one in verdict.unknown),
            expected="metrics and fields that `sonder release show` and docs/releases.md name",
            do="Correct the consumers file.",
        )


def require_kept(verdict: Verdict) -> None:
    """PromotionRefused if a promise is not kept."""
    refusals = verdict.refusals
    if refusals:
        consumers = len({finding.consumer for finding in refusals})
        raise PromotionRefused(
            f"{verdict.release} does not keep {len(refusals)} of {len(verdict.findings)} promises, to"
            f" {consumers} consumer{'s' if consumers > 1 else ''}, compared with {verdict.against}, which stays served",
            do=f"Look at `sonder release diff {verdict.against} {verdict.release}`; a promise may be changed in the"
            " consumers file, or broken with --force --reason WHY",
            reasons=tuple(finding.sentence for finding in refusals) + verdict.notes,
        )


def _asked(finding: Finding) -> str:
    return f"{finding.consumer}: {finding.subject}, {finding.why}"
