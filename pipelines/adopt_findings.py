"""Each part of the evidence as findings: sentences with their numbers, judged better, even or worse. Pure.

What blocks: a broken promise to a consumer; a mean score of the probes, or NDCG@10, below the current release's by an
interval that leaves out zero; calibration of a score worse beyond chance by more than MOST_ECE; coverage of a field
down by more than MOST_UNCOVERED. Everything else that is worse is told, and keeps a candidate from being shipped
without an experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.adopt_cost import CostComparison
from pipelines.adopt_off_policy import OffPolicyComparison
from pipelines.adopt_ranking import RankingComparison
from sonder.evaluation.adoption import Finding, Judgement
from sonder.evaluation.effect_charts import signed
from sonder.evaluation.paired import PairedDifference
from sonder.evaluation.user_comparison import UserComparison
from sonder.releases.differences import Differences
from sonder.releases.gate import Verdict

MOST_ECE = 0.01  # of a calibration error, absolute
MOST_UNCOVERED = 0.01  # of all users
MOST_PSI = 0.25  # the usual reading: another population
COST_LIMITS = {"training_seconds": 2.0, "vector_bytes": 1.5, "profile_bytes": 1.5, "embedding_ms": 1.5}
COST_NAMES = {
    "training_seconds": "Seconds of training",
    "vector_bytes": "Bytes of a vector",
    "profile_bytes": "Bytes of a profile",
    "embedding_ms": "Milliseconds to embed one user",
}
DECIDING_READER = "linear"  # of the probes: the one that most consumers have; the other one is shown beside it


def of_promises(verdict: Verdict | None) -> Iterator[Finding]:
    if verdict is None:
        yield Finding("promises", "consumers", "unknown", "No consumer has said what it relies on (consumers.yaml).")
        return
    for found in verdict.refusals:
        yield Finding("promises", found.subject, "worse", found.sentence + ".", blocks=True)
    if not verdict.refusals:
        yield Finding("promises", "consumers", "even", f"All {len(verdict.findings)} promises to consumers are kept.")


def of_probes(compared: Mapping[str, Any] | None, reason: str = "") -> Iterator[Finding]:
    """`compared`: sonder.evaluation.probes.compare_probes of candidate (a) and current (b)."""
    if compared is None:
        yield Finding("probes", "all", "unknown", f"The probes could not be asked: {reason}")
        return
    for reader, scores in compared["score"].items():
        found = scores["vector"]
        if found is None:
            continue
        judgement = _of_side(found["better"])
        low, high = found["interval"]
        told = f"Probes read by the {reader} reader: mean score {found['value']:+.4f} ({low:+.4f} to {high:+.4f})."
        is_deciding = reader == DECIDING_READER
        yield Finding("probes", f"score, {reader}", judgement if is_deciding else "even", told,
                      blocks=is_deciding and judgement == "worse")  # fmt: skip


def of_ranking(compared: RankingComparison | None, reason: str = "") -> Iterator[Finding]:
    if compared is None or compared.ndcg_at_10 is None:
        why = reason or "too few users have both a history and a target"
        yield Finding("ranking", "NDCG@10", "unknown", f"Rankings could not be compared: {why}")
        return
    found = compared.ndcg_at_10
    told = f"NDCG@10: {told_difference(found)}"
    yield Finding("ranking", "NDCG@10", _judged(found), told, blocks=found.judgement == "worse")
    for part in compared.by_lifecycle:
        if part.judgement == "worse":
            yield Finding("segments", part.name, "worse", f"NDCG@10 of {part.name} users: {told_difference(part)}")


def of_metrics(differences: Differences) -> Iterator[Finding]:
    """Calibration of the scores, and coverage of the fields."""
    for change in differences.metrics:
        if change.was is None or change.now is None:
            continue
        parts = change.name.split(".")
        if parts[0] == "scores" and parts[-1] == "ece" and change.judgement in ("better", "worse"):
            is_clear = not change.is_chance
            judgement: Judgement = ("worse" if change.judgement == "worse" else "better") if is_clear else "even"
            told = f"Calibration error of {'.'.join(parts[1:-1])}: {change.was:.4f} before, {change.now:.4f} now"
            is_past = is_clear and change.now - change.was > MOST_ECE
            yield Finding("calibration", change.name, judgement, told + ("." if is_clear else ", within chance."),
                          blocks=is_past)  # fmt: skip
        if parts[0] == "coverage" and change.was - change.now > MOST_UNCOVERED:
            told = f"{change.name.removeprefix('coverage.')} is known of {change.was:.1%} before, {change.now:.1%} now."
            yield Finding("coverage", change.name, "worse", told, blocks=True)


def of_stability(users: UserComparison) -> Iterator[Finding]:
    is_other_space = users.vectors.movement is None
    if is_other_space:
        why = users.vectors.reason or "the vectors lie in another space"
        told = f"Vectors cannot be mixed ({why}): whoever holds current ones, or models learnt on them, has to move."
        yield Finding("stability", "space", "worse", told)
    moved = [shift for shift in users.scores if shift.psi > MOST_PSI]
    for shift in moved:
        told = (
            f"{shift.name} has another distribution (PSI {shift.psi:.3f}): thresholds that consumers set mean others."
        )
        yield Finding("stability", shift.name, "worse", told)
    if not moved and not is_other_space:
        yield Finding("stability", "users", "even", "Vectors stay in the space of the current release's, scores too.")


def of_cost(costs: CostComparison) -> Iterator[Finding]:
    for name, limit in COST_LIMITS.items():
        ratio = costs.ratio(name)
        if ratio is None:
            continue
        judgement: Judgement = "worse" if ratio > limit else "better" if ratio < 1 / limit else "even"
        yield Finding("cost", name, judgement, f"{COST_NAMES[name]}: {ratio:.2f} of the current release's.")


def of_off_policy(compared: OffPolicyComparison) -> Iterator[Finding]:
    told = (
        f"Off-policy, doubly robust over {compared.rounds:,} rounds: {compared.difference:+.5f} a shown item "
        f"({compared.low:+.5f} to {compared.high:+.5f})"
    )
    judgement: Judgement = compared.judgement  # type: ignore[assignment]
    if judgement == "unknown":
        told += "; too little of the log is like what the releases would do, so it decides nothing"
    yield Finding("off-policy", "value", judgement, told + ".", blocks=judgement == "worse")


def told_difference(found: PairedDifference) -> str:
    relative = "" if found.relative is None else f", {signed(found.relative)}"
    return (
        f"{found.was:.4f} before, {found.now:.4f} now over {found.users:,} users "
        f"({found.difference:+.4f}{relative}; {1 - found.alpha:.1%} interval {found.low:+.4f} to {found.high:+.4f})."
    )


def _judged(found: PairedDifference) -> Judgement:
    return "better" if found.judgement == "better" else "worse" if found.judgement == "worse" else "even"


def _of_side(better: str | None) -> Judgement:
    return "better" if better == "a" else "worse" if better == "b" else "even"
