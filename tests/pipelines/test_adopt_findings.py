"""Each part of the evidence becomes sentences, and only what should blocks."""

from typing import Any

import pytest

from pipelines.adopt_cost import Cost, CostComparison
from pipelines.adopt_findings import of_cost, of_metrics, of_probes, of_ranking
from pipelines.adopt_ranking import RankingComparison
from sonder.evaluation.paired import PairedDifference
from sonder.releases.differences import Differences, MetricChange


def differences(*changes: MetricChange) -> Differences:
    return Differences("r-1", "r-2", (), (), changes, (), (), ())


def change(name: str, was: float, now: float, **more: Any) -> MetricChange:
    lower_is_better = name.endswith("ece")
    judgement = "same" if was == now else "better" if (now < was) == lower_is_better else "worse"
    return MetricChange(name, was, now, judgement, **more)  # type: ignore[arg-type]


def ranking(low: float, high: float, *slices: PairedDifference) -> RankingComparison:
    ndcg = PairedDifference("NDCG@10", 500, 0.3, 0.3 + (low + high) / 2, (low + high) / 2, low, high, 0.05)
    return RankingComparison("temporal", "2026-01-01", "2026-01-31", 500, None, ndcg, 0.4, list(slices))


@pytest.mark.parametrize(
    ("low", "high", "judgement", "blocks"),
    [(0.01, 0.02, "better", False), (-0.02, -0.01, "worse", True), (-0.01, 0.02, "even", False)],
)
def test_a_ranking_that_got_worse_blocks(low: float, high: float, judgement: str, blocks: bool) -> None:
    (found,) = of_ranking(ranking(low, high))
    assert (found.judgement, found.blocks) == (judgement, blocks)
    assert "over 500 users" in found.sentence


def test_a_group_of_users_who_lose_is_told_and_does_not_block() -> None:
    losing = PairedDifference("dormant", 60, 0.3, 0.2, -0.1, -0.15, -0.05, 0.05 / 6)
    _, found = of_ranking(ranking(0.01, 0.02, losing))
    assert (found.area, found.judgement, found.blocks) == ("segments", "worse", False)
    assert "dormant users: 0.3000 before, 0.2000 now" in found.sentence


def test_what_could_not_be_measured_is_no_reason_for_anything() -> None:
    for (found,) in (of_ranking(None, "no window"), of_probes(None, "no window")):
        assert (found.judgement, found.blocks) == ("unknown", False)
        assert "no window" in found.sentence


def test_calibration_blocks_where_it_is_worse_beyond_chance_and_by_enough() -> None:
    clear = {"interval_was": (0.01, 0.02), "interval_now": (0.03, 0.05)}
    chance = {"interval_was": (0.0, 0.05), "interval_now": (0.0, 0.06)}
    found = list(
        of_metrics(
            differences(
                change("scores.buy_7d.ece", 0.015, 0.04, **clear),
                change("scores.churn_14d.ece", 0.015, 0.04, **chance),
                change("scores.spend.ece", 0.015, 0.02, interval_was=(0.01, 0.016), interval_now=(0.018, 0.03)),
                change("scores.buy_7d.auc", 0.7, 0.6),
            )
        )
    )
    assert [(one.judgement, one.blocks) for one in found] == [("worse", True), ("even", False), ("worse", False)]


def test_a_field_that_fewer_users_have_blocks() -> None:
    found = list(
        of_metrics(differences(change("coverage.embedding", 0.95, 0.90), change("coverage.scores", 0.95, 0.945)))
    )
    assert [(one.area, one.blocks) for one in found] == [("coverage", True)]


def test_the_linear_reader_decides_and_the_other_one_is_told() -> None:
    def score(value: float, better: str | None) -> dict[str, Any]:
        return {"vector": {"value": value, "interval": (value - 0.1, value + 0.1), "better": better}}

    found = list(of_probes({"score": {"linear": score(0.01, None), "network": score(-0.3, "b")}}))
    assert [(one.judgement, one.blocks) for one in found] == [("even", False), ("even", False)]
    (worse,) = of_probes({"score": {"linear": score(-0.3, "b")}})
    assert (worse.judgement, worse.blocks) == ("worse", True)


def test_a_cost_is_judged_by_its_ratio_and_never_blocks() -> None:
    found = list(of_cost(CostComparison(Cost(None, 64, 500.0, 1.0), Cost(60.0, 128, 510.0, 0.5))))
    assert [(one.subject, one.judgement) for one in found] == [
        ("vector_bytes", "worse"),
        ("profile_bytes", "even"),
        ("embedding_ms", "better"),
    ]
    assert not any(one.blocks for one in found)
