"""The gate as a function of two sets of facts, each finding by a tiny literal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.config import SonderConfig
from sonder.releases.consumers import Consumers
from sonder.releases.facts import ReleaseFacts
from sonder.releases.gate import Finding, Verdict, judge
from sonder.releases.manifest import Manifest

DAY_US = 86_400_000_000
FIELDS = {
    "embedding": "list of float of 8",
    "scores.buy": "action of buy within 7 days",
    "segments.cluster_id": "int16",
}


def facts(release: str, *, fields: Mapping[str, str] = FIELDS, **metrics: float) -> ReleaseFacts:
    config = SonderConfig.model_validate({"events": {"path": "log.csv"}}).model_dump(mode="json")
    told: dict[str, Any] = {"code_version": "1", "snapshot": "s", "inputs": {}, "config_digest": "", "files": {}}
    manifest = Manifest(
        id=release,
        created_at="",
        parent=None,
        as_of_us=20_000 * DAY_US,
        config=config,
        metrics={},
        row_counts={},
        **told,
    )
    return ReleaseFacts(manifest, {name.replace("__", "."): value for name, value in metrics.items()}, {}, fields)


def verdict(
    was: ReleaseFacts | None, now: ReleaseFacts, *, needs: list[str] | None = None, **bounds: Any
) -> tuple[Verdict, Finding]:
    """What one consumer with one promise is told; only these metrics were ever known."""
    metric = bounds.pop("metric", "a.auc")
    requires = [{"metric": metric, **bounds}] if bounds else []
    consumers = Consumers.model_validate({"consumers": [{"name": "ads", "needs": needs or [], "requires": requires}]})
    judged = judge(consumers, now, was, lambda: {"a.auc", "once.auc", "stability.users_moved"})
    return judged, judged.findings[0]


@pytest.mark.parametrize(
    ("now", "bounds", "status"),
    [
        (0.792, {"may_fall": "1%"}, "kept"),  # exactly the tolerance, in binary a little less
        (0.7919, {"may_fall": "1%"}, "broken"),
        (0.9, {"may_fall": "1%"}, "kept"),
        (0.9, {"may_fall": "1%", "may_rise": "1%"}, "broken"),
        (0.792, {"may_worsen": "1%"}, "kept"),
        (0.7919, {"may_worsen": "1%"}, "broken"),
        (0.808, {"may_worsen": "1%", "better": "lower"}, "kept"),
        (0.8081, {"may_worsen": "1%", "better": "lower"}, "broken"),
        (0.7, {"at_least": 0.7}, "kept"),
        (0.699, {"at_least": 0.7}, "broken"),
        (0.701, {"at_most": 0.7}, "broken"),
        (0.799, {"may_fall": "1%", "at_least": 0.8}, "broken"),  # all bounds hold, not one of them
        (0.79, {"may_fall": "1%", "at_least": 0.7}, "broken"),
    ],
)
def test_a_metric_is_held_to_each_of_its_bounds(now: float, bounds: dict[str, Any], status: str) -> None:
    judged, finding = verdict(facts("r-1", a__auc=0.8), facts("r-2", a__auc=now), **bounds)
    assert finding.status == status
    assert judged.would_refuse == (status == "broken")


def test_a_negative_metric_falls_by_shares_of_its_size() -> None:
    was = facts("r-1", a__auc=-10.0)
    assert verdict(was, facts("r-2", a__auc=-10.5), may_fall="5%")[1].status == "kept"
    assert verdict(was, facts("r-2", a__auc=-10.6), may_fall="5%")[1].status == "broken"


def test_of_zero_no_share_may_be_lost() -> None:
    was = facts("r-1", a__auc=0.0)
    assert verdict(was, facts("r-2", a__auc=0.0), may_fall="5%")[1].status == "kept"
    assert verdict(was, facts("r-2", a__auc=-1e-12), may_fall="5%")[1].status == "broken"


def test_a_refusal_says_consumer_metric_was_is_and_allowed() -> None:
    judged, finding = verdict(facts("r-1", a__auc=0.75), facts("r-2", a__auc=0.7321), may_fall="1%")
    assert finding.sentence == "ads: a.auc was 0.7500, is 0.7321 (-2.39 %), allowed: may fall 1 %, to at least 0.7425"
    assert judged.to_dict()["would_refuse"] is True


def test_a_metric_that_is_lost_is_not_measured_and_one_that_is_new_passes() -> None:
    _, lost = verdict(facts("r-1", a__auc=0.75), facts("r-2"), may_fall="1%")
    assert (lost.status, lost.sentence) == ("not measured", "ads: a.auc not measured; it was 0.7500 in r-1")
    _, new = verdict(facts("r-1"), facts("r-2", a__auc=0.75), may_fall="1%")
    assert (new.status, new.why) == ("kept", "r-1 has no such number to compare with")
    _, bounded = verdict(facts("r-1"), facts("r-2", a__auc=0.75), may_fall="1%", at_least=0.8)
    assert bounded.status == "broken"


def test_what_neither_has_but_some_release_had_is_not_measured_and_what_none_had_is_unknown() -> None:
    assert verdict(facts("r-1"), facts("r-2"), metric="once.auc", at_least=0.5)[1].status == "not measured"
    judged, never = verdict(facts("r-1"), facts("r-2"), metric="a.auk", at_least=0.5)
    assert (never.status, judged.unknown) == ("unknown", (never,))
    assert "near: a.auc" in never.why


def test_without_a_served_release_only_the_bounds_of_the_value_count_and_nothing_is_refused() -> None:
    judged, finding = verdict(None, facts("r-1", a__auc=0.7), may_fall="1%", at_least=0.8)
    assert (finding.status, judged.would_refuse) == ("broken", False)
    assert verdict(None, facts("r-1", a__auc=0.7), may_fall="1%")[1].status == "kept"


@pytest.mark.parametrize(
    ("fields", "need", "status", "why"),
    [
        (FIELDS, "segments.cluster_id", "kept", ""),
        ({"embedding": "list of float of 8"}, "scores.buy", "broken", "the field has disappeared"),
        ({**FIELDS, "embedding": "list of float of 16"}, "embedding", "broken", "its meaning changed"),
        ({**FIELDS, "extra": "int"}, "extra", "kept", ""),
        (FIELDS, "segments.cluster", "unknown", "no release has this field; near: segments.cluster_id"),
    ],
)
def test_a_field_must_be_there_and_mean_the_same(fields: dict[str, str], need: str, status: str, why: str) -> None:
    _, finding = verdict(facts("r-1"), facts("r-2", fields=fields), needs=[need])
    assert (finding.status, finding.why.split(";")[0]) == (status, why.split(";")[0])


def test_a_field_that_is_null_for_every_user_is_not_there() -> None:
    now = facts("r-2", coverage__segments__cluster_id=0.0)
    _, finding = verdict(facts("r-1"), replace(now, metrics={"coverage.segments.cluster_id": 0.0}), needs=[*FIELDS][2:])
    assert (finding.status, finding.why) == ("broken", "it is null for every user")


def changed(release: ReleaseFacts, **evaluation: Any) -> ReleaseFacts:
    config = {**release.manifest.config, "evaluation": {**release.manifest.config["evaluation"], **evaluation}}
    return replace(release, manifest=replace(release.manifest, config=config))


@pytest.mark.parametrize("evaluation", [{"protocol": "leave_one_out"}, {"test_days": 7}])
def test_numbers_of_another_protocol_are_never_compared(evaluation: dict[str, Any]) -> None:
    was = replace(facts("r-1"), metrics={"retrieval.encoder.ndcg_at_10": 0.04, "a.auc": 0.8})
    now = replace(changed(facts("r-2"), **evaluation), metrics={"retrieval.encoder.ndcg_at_10": 0.9, "a.auc": 0.8})
    judged, finding = verdict(was, now, metric="retrieval.encoder.ndcg_at_10", may_fall="1%")
    assert finding.status == "not comparable"
    assert "the protocol was temporal, tested on 30 days" in finding.why
    assert judged.would_refuse
    assert any("retrieval.*" in note for note in judged.notes)
    assert verdict(was, now, may_fall="1%")[1].status == "kept"  # what does not depend on it is compared


def test_the_length_of_a_temporal_test_does_not_matter_to_leave_one_out() -> None:
    was, now = (changed(facts(name, a__auc=0.8), protocol="leave_one_out") for name in ("r-1", "r-2"))
    assert verdict(was, changed(now, test_days=7), may_fall="1%")[0].notes == ()


def test_scores_of_another_promise_are_not_compared() -> None:
    was = replace(facts("r-1"), metrics={"scores.buy.auc": 0.8})
    now = facts("r-2", fields={**FIELDS, "scores.buy": "action of buy within 30 days"})
    now = replace(now, metrics={"scores.buy.auc": 0.9})
    assert verdict(was, now, metric="scores.buy.auc", may_fall="1%")[1].status == "not comparable"
    assert verdict(was, now, needs=["scores.buy"])[1].status == "broken"


def test_stability_against_another_parent_says_nothing_of_the_served_release() -> None:
    moved = replace(facts("r-3"), metrics={"stability.users_moved": 0.01})
    ask = {"metric": "stability.users_moved", "at_most": 0.2}
    of_served = replace(moved, manifest=replace(moved.manifest, parent="r-1"))
    assert verdict(facts("r-1"), of_served, **ask)[1].status == "kept"
    of_other = replace(moved, manifest=replace(moved.manifest, parent="r-2"))
    assert verdict(facts("r-1"), of_other, **ask)[1].status == "not comparable"
    assert verdict(facts("r-1"), facts("r-3"), **ask)[1].status == "not measured"


def test_another_cutoff_is_compared_and_said() -> None:
    now = facts("r-2", a__auc=0.8)
    later = replace(now, manifest=replace(now.manifest, as_of_us=now.manifest.as_of_us + DAY_US, snapshot="t"))
    judged, finding = verdict(facts("r-1", a__auc=0.8), later, may_fall="1%")
    assert finding.status == "kept"
    assert [note.split(":")[0] for note in judged.notes] == ["log read", "test window", "snapshot"]


@pytest.mark.parametrize(
    ("interval", "now", "told"),
    [
        ((0.70, 0.78), 0.74, "its 95 % interval is 0.7000 to 0.7800, which holds the old value"),
        ((0.73, 0.745), 0.74, "its 95 % interval is 0.7300 to 0.7450, which does not hold the old value"),
        ((0.70, 0.78), 0.75, "the tolerance is narrower than chance: its 95 % interval is 0.7000 to 0.7800"),
        ((0.749, 0.751), 0.75, ""),
    ],
)
def test_the_reason_says_what_chance_alone_moves(interval: tuple[float, float], now: float, told: str) -> None:
    new = replace(facts("r-2", a__auc=now), intervals={"a.auc": interval})
    assert verdict(facts("r-1", a__auc=0.75), new, may_fall="1%")[1].why == told


@given(
    st.floats(1e-6, 1e6),
    st.floats(0, 2),
    st.sampled_from(["may_fall", "may_rise"]),
    st.floats(0, 1),
)
def test_a_share_is_what_it_says_of_any_number(was: float, ratio: float, side: str, share: float) -> None:
    """Against the rule written the plain way, away from the bound itself."""
    percent = f"{100 * share:.6f}%"
    lost = (1 - ratio) if side == "may_fall" else (ratio - 1)
    if abs(lost - share) < 1e-6:
        return
    metric = {"may_fall": "a.auc", "may_rise": "a.ece"}[side]
    before, after = (
        replace(facts(name), metrics={metric: value}) for name, value in (("r-1", was), ("r-2", was * ratio))
    )
    _, finding = verdict(before, after, metric=metric, **{side: percent})
    assert finding.status == ("broken" if lost > share else "kept")
