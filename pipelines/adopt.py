"""`sonder adopt`: everything there is to know of a candidate beside the current release, ending in one word.

Parts: promises to consumers (the gate), probes, rankings on one window that neither encoder saw, calibration and
coverage, stability for who holds the current vectors and scores, off-policy estimates where a slot's log has
propensities, cost, risk by lifecycle state, and the experiment that would answer the rest, with its sample size.
Every part that cannot be measured says why and is no reason for anything. The word follows from the findings by
sonder.evaluation.adoption.decide. One JSON and one page (adopt_page) hold all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines import adopt_findings as findings_of
from pipelines.adopt_cost import CostComparison, compare_costs
from pipelines.adopt_experiment import planned_experiment
from pipelines.adopt_off_policy import OffPolicyComparison, compare_off_policy
from pipelines.adopt_ranking import RankingComparison, compare_rankings
from pipelines.probe import compare_releases_by_probes, settle_moment
from pipelines.release_diff import ReleaseComparison, compare_releases
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.errors import InvalidRequest, SonderError
from sonder.core.workspace import Workspace
from sonder.evaluation.adoption import Decision, Finding, Sameness, decide
from sonder.experiments.planning import Plan
from sonder.experiments.specification import Experiment
from sonder.releases.artefacts import Release, served_release

T = TypeVar("T")


@dataclass(frozen=True)
class Adoption:
    """The evidence, what it says, and the word."""

    candidate: str
    current: str
    differences: ReleaseComparison
    probes: dict[str, Any] | None
    ranking: RankingComparison | None
    off_policy: OffPolicyComparison | None
    costs: CostComparison
    experiment: Experiment | None
    plan: Plan | None
    missing: dict[str, str]  # part -> why it could not be measured
    findings: tuple[Finding, ...]
    decision: Decision

    def to_dict(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate,
            "current": self.current,
            "decision": self.decision.to_dict(),
            "findings": [vars(finding) for finding in self.findings],
            "missing": self.missing,
            "probes": self.probes,
            "ranking": None if self.ranking is None else self.ranking.to_dict(),
            "off_policy": None if self.off_policy is None else self.off_policy.to_dict(),
            "costs": self.costs.to_dict(),
            "experiment": None if self.experiment is None else self.experiment.model_dump(mode="json"),
            "plan": None if self.plan is None else self.plan.model_dump(mode="json"),
            "differences": self.differences.to_dict(),
        }


def adopt(
    config: SonderConfig,
    candidate_id: str,
    against: str | None = None,
    *,
    slot_log: Path | None = None,
    minimum_effect: float = 0.02,
    num_workers: int | None = None,
) -> Adoption:
    """Compare a candidate with a release, the served one if none is named."""
    workspace = Workspace.at(config.workspace)
    current_id = against or served_release(workspace)
    if candidate_id == current_id:
        raise InvalidRequest(
            f"{candidate_id} is the current release",
            expected="another one as candidate",
            do="`sonder release list` shows them; --against names another one to compare with.",
        )
    candidate, current = (Release.open(workspace, name) for name in (candidate_id, current_id))
    missing: dict[str, str] = {}
    with telemetry.stage("adopt", candidate=candidate_id, current=current_id) as counts:
        off_policy = _off_policy(config, candidate, current, slot_log, missing)  # first: its file may be wrong
        compared = compare_releases(config, current_id, candidate_id)
        probes = _if_possible(
            missing,
            "probes",
            lambda: compare_releases_by_probes(config, candidate_id, current_id, num_workers=num_workers),
        )
        ranking = _if_possible(missing, "ranking", lambda: compare_rankings(config, candidate, current))
        costs = compare_costs(candidate, current)
        planned = _if_possible(
            missing, "plan",
            lambda: planned_experiment(config, candidate_id, minimum_effect=minimum_effect, num_workers=num_workers),
        )  # fmt: skip
        experiment, plan = planned if planned is not None else (None, None)
        found = _findings(compared, probes, ranking, costs, off_policy, missing)
        decision = decide(
            found, _sameness(compared, ranking), num_needed=None if plan is None else max(plan.users_by_arm.values())
        )
        counts.update(decision=decision.word, findings=len(found))
    return Adoption(
        candidate_id,
        current_id,
        compared,
        probes,
        ranking,
        off_policy,
        costs,
        experiment,
        plan,
        missing,
        found,
        decision,
    )


def _if_possible(missing: dict[str, str], part: str, measure: Callable[[], T]) -> T | None:
    """What a part says; where it can't be measured, the reason goes into `missing`."""
    try:
        return measure()
    except SonderError as error:
        missing[part] = str(error)
        return None


def _off_policy(
    config: SonderConfig, candidate: Release, current: Release, slot_log: Path | None, missing: dict[str, str]
) -> OffPolicyComparison | None:
    if slot_log is None:
        missing["off-policy"] = "No log with propensities was given (--slot-log)."
        return None
    moment = settle_moment(candidate, [candidate, current])
    return compare_off_policy(candidate, current, slot_log, as_of_us=moment.cutoff_us, seed=config.seed)


def _findings(
    compared: ReleaseComparison,
    probes: dict[str, Any] | None,
    ranking: RankingComparison | None,
    costs: CostComparison,
    off_policy: OffPolicyComparison | None,
    missing: dict[str, str],
) -> tuple[Finding, ...]:
    return (
        *findings_of.of_promises(compared.verdict),
        *findings_of.of_probes(None if probes is None else probes["differences"], missing.get("probes", "")),
        *findings_of.of_ranking(ranking, missing.get("ranking", "")),
        *findings_of.of_metrics(compared.differences),
        *findings_of.of_stability(compared.users),
        *(() if off_policy is None else findings_of.of_off_policy(off_policy)),
        *findings_of.of_cost(costs),
    )


def _sameness(compared: ReleaseComparison, ranking: RankingComparison | None) -> Sameness:
    scores = [shift.psi for shift in compared.users.scores]
    return Sameness(
        overlap_at_10=None if ranking is None else ranking.overlap_at_10,
        largest_psi=max(scores, default=None),
        is_same_space=compared.users.vectors.movement is not None,
    )
