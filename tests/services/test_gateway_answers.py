"""What the routes answer, over the real deployments of the tiny release, without Serve."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.gateway.fresh import FreshPath
from services.gateway.reasons import explain_interest
from services.gateway.stages import HistoryBatch
from sonder.core.errors import StageUnavailable
from sonder.interests import ward
from sonder.profiles.record import PROFILE_SCHEMA
from sonder.scoring.table import SCORE_SCHEMA

if TYPE_CHECKING:
    from conftest import Served

ENVELOPE = {"release", "age_ms", "user_id", "is_cold", "cold_reason", "as_of", "computed_at"}
VOLATILE = {"age_ms", "computed_at"}


def without(answer: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


def without_drivers(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "scores": [without(score, {"drivers"}) for score in answer["scores"]]}


def test_a_stored_profile_is_answered_with_its_envelope_and_every_field(served: Served) -> None:
    answer = served.get("/v1/users/user-1")
    assert set(answer) == ENVELOPE | {"audiences"} | set(PROFILE_SCHEMA.names) - {"embedding"}
    assert (answer["user_id"], answer["release"], answer["is_cold"]) == ("user-1", "release-1", False)
    assert answer["age_ms"] >= 0
    assert sum(interest["weight"] for interest in answer["interests"]) == pytest.approx(1.0)


def test_reading_a_stored_profile_makes_no_hop(served: Served) -> None:
    served.get("/v1/users/user-1")
    served.get("/v1/users/user-1/explanation")
    assert all(handle.calls == [] for handle in served.handles.values())


def test_a_fresh_profile_without_new_events_equals_the_stored_one(served: Served) -> None:
    for user_id in [*served.release.user_ids, "k%C3%A4ufer%2Fonly%20shown"]:
        fresh = served.get(f"/v1/users/{user_id}?fresh=true")
        stored = served.get(f"/v1/users/{user_id}")
        assert without_drivers(without(fresh, VOLATILE)) == without_drivers(without(stored, VOLATILE))
        assert all(score["drivers"] is None for score in fresh["scores"])
        assert fresh["age_ms"] < 10_000


def test_facts_of_the_user_table_are_answered_and_carried_over(served: Served) -> None:
    asked = "/v1/users/user-1?fields=attributes,consent"
    answer = served.get(asked)
    assert answer["attributes"] == {"country": 'D"E'}
    assert answer["consent"] == {"ads": True, "email": False}
    assert without(served.get(f"{asked}&fresh=true"), VOLATILE) == without(answer, VOLATILE)
    other = served.get("/v1/users/user-2")
    assert (other["signup_at"], other["attributes"], other["consent"]) == (None, None, None)


def test_a_fresh_embedding_equals_the_stored_one(served: Served) -> None:
    stored = served.get("/v1/users/user-2/embedding")
    fresh = served.get("/v1/users/user-2?fresh=true&fields=embedding")
    assert set(stored) == ENVELOPE | {"embedding"}
    assert len(stored["embedding"]) == 8
    assert fresh["embedding"] == pytest.approx(stored["embedding"], abs=1e-6)


def test_requests_of_one_moment_travel_in_few_micro_batches(served: Served) -> None:
    asked = [("GET", f"/v1/users/{user}?fresh=true", {}) for user in served.release.user_ids * 2]
    answers = served.together(asked)
    assert [answer.json()["user_id"] for answer in answers] == served.release.user_ids * 2
    assert all("degraded" not in answer.json() for answer in answers)
    calls = served.handles["embedding"].calls
    assert len(calls) <= 4
    assert max(users for _, users in calls) >= 20


def test_the_same_user_asked_for_twice_at_once_is_computed_once(served: Served) -> None:
    answers = served.together([("GET", "/v1/users/user-3?fresh=true", {})] * 8)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(users == 1 for _, users in served.handles["embedding"].calls)


@pytest.mark.parametrize(
    ("stage", "method", "kept", "stages"),
    [
        ("scoring", "score", {"scores"}, ["scoring"]),
        ("segmentation", "segment", {"segments", "interests", "affinities"}, ["segmentation"]),
        ("embedding", "embed", {"is_cold", "cold_reason", "scores"}, ["embedding", "scoring"]),
    ],
)
def test_a_failing_stage_is_named_and_its_stored_part_stands_in(
    served: Served, stage: str, method: str, kept: set[str], stages: list[str]
) -> None:
    served.handles[stage].fails[method] = RuntimeError("secret path /srv/x")
    stored, fresh = served.get("/v1/users/user-4"), served.get("/v1/users/user-4?fresh=true")
    assert [missing["stage"] for missing in fresh["degraded"]] == stages
    assert fresh["degraded"][0]["reason"] == f"{stage} is failing"
    assert "secret" not in str(fresh)
    assert {name: fresh[name] for name in kept} == {name: stored[name] for name in kept}
    assert without_drivers(without(fresh, VOLATILE | {"degraded"})) == without_drivers(without(stored, VOLATILE))


@pytest.mark.parametrize(("stage", "method"), [("scoring", "score"), ("segmentation", "segment")])
def test_an_answer_in_another_form_is_a_failure_of_its_stage(
    served: Served, monkeypatch: pytest.MonkeyPatch, stage: str, method: str
) -> None:
    async def of_another_version(*arguments: Any, **asked: Any) -> Any:
        return {"scores": []}

    monkeypatch.setattr(served.handles[stage].deployment, method, of_another_version)
    degraded = served.get("/v1/users/user-4?fresh=true")["degraded"]
    assert [(missing["stage"], missing["reason"]) for missing in degraded] == [(stage, f"{stage} is failing")]


def test_the_cluster_online_is_that_of_the_batch(served: Served) -> None:
    stored = [served.get(f"/v1/users/user-{user}")["segments"] for user in range(4)]
    fresh = [served.get(f"/v1/users/user-{user}?fresh=true")["segments"] for user in range(4)]
    assert fresh == stored
    assert {segments["cluster_id"]: segments["cluster"] for segments in stored}.items() <= {
        (3, "first axis"), (7, "second axis")
    }  # fmt: skip


def test_a_slow_stage_costs_no_more_than_the_budget(served: Served) -> None:
    served.engine._fresh_path._budget_s = 0.3
    served.handles["scoring"].hangs.add("score")
    fresh = served.get("/v1/users/user-5?fresh=true")
    assert fresh["degraded"] == [
        {"stage": "scoring", "reason": "scoring did not answer in time", "instead": "the stored values"}
    ]


class LateSegmentation:
    """Stages of which one never answers; the others do so at once."""

    def __init__(self) -> None:
        self.summaries: list[Any] = []  # what scoring was told of the interests

    async def embed(self, batch: HistoryBatch, *, deadline: float) -> Any:
        return np.ones((len(batch.user_ids), 2), np.float32)

    async def segment(self, batch: HistoryBatch, *, deadline: float) -> Any:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.Event().wait()
        raise StageUnavailable("segmentation did not answer in time")

    async def score(self, batch: HistoryBatch, vectors: Any, interests: Any = None, **_: Any) -> Any:
        self.summaries.append(interests)
        return SCORE_SCHEMA.empty_table()


def test_scoring_does_not_wait_for_a_late_segmentation_until_it_is_late_itself() -> None:
    stages: Any = LateSegmentation()
    path = FreshPath(stages, base_rates={}, max_events=10, budget_s=0.1)

    async def composed() -> Any:
        deadline = asyncio.get_running_loop().time() + 0.1
        return await path._compose(HistoryBatch(["u"], [b""], 0), deadline, False)

    found = asyncio.run(composed())
    assert list(found.failures) == ["segmentation"]
    assert stages.summaries == [None]


def test_a_fresh_profile_clusters_its_items_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    clustered, original = [], ward.ward_clusters

    def counted(users_P: Any, *rest: Any) -> Any:
        clustered.append(len(users_P))
        return original(users_P, *rest)

    monkeypatch.setattr(ward, "ward_clusters", counted)
    assert "degraded" not in served.get("/v1/users/user-5?fresh=true")
    assert len(clustered) == 1


def test_a_user_whose_online_history_is_cut_is_told_so(served: Served) -> None:
    served.engine._fresh_path._max_events = 3
    fresh = served.get("/v1/users/user-1?fresh=true")
    assert [missing["stage"] for missing in fresh["degraded"]] == ["history"]


def test_an_unknown_user_gets_the_declared_cold_profile(served: Served) -> None:
    for path in ("/v1/users/nobody", "/v1/users/nobody?fresh=true"):
        answer = served.get(path)
        assert (answer["user_id"], answer["is_cold"], answer["cold_reason"]) == ("nobody", True, "unknown_user")
        assert answer["segments"]["lifecycle"] == "cold"
        assert [(score["name"], score["value"]) for score in answer["scores"]] == [("buy_7d", 0.25)]


def test_a_user_without_a_wish_is_cold_but_known(served: Served) -> None:
    answer = served.get("/v1/users/k%C3%A4ufer%2Fonly%20shown")
    assert (answer["user_id"], answer["cold_reason"]) == (served.release.shown_only, "no_wanted_events")
    assert answer["num_events"] > 0


def test_a_batch_is_answered_in_the_order_asked_for(served: Served) -> None:
    asked = ["user-3", "nobody", "user-1", "user-3", served.release.shown_only]
    answer = served.request("POST", "/v1/users:batchGet", json={"user_ids": asked})
    profiles = answer.json()["profiles"]
    assert [profile["user_id"] for profile in profiles] == asked
    assert [profile["is_cold"] for profile in profiles] == [False, True, False, False, True]
    assert without(profiles[2], {"age_ms"}) == without(served.get("/v1/users/user-1"), {"age_ms"})


def test_only_the_asked_fields_are_answered(served: Served) -> None:
    answer = served.get("/v1/users/user-1?fields=scores,num_events")
    assert set(answer) == ENVELOPE | {"scores", "num_events"}


@pytest.mark.parametrize("part", ["interests", "affinities", "segments", "scores"])
def test_a_part_is_the_profile_s_part(served: Served, part: str) -> None:
    answer = served.get(f"/v1/users/user-6/{part}")
    assert set(answer) == ENVELOPE | {part} | ({"audiences"} if part == "segments" else set())
    assert answer[part] == served.get("/v1/users/user-6")[part]


def test_recommendations_leave_out_the_history_unless_seen_is_asked_for(served: Served) -> None:
    stored = served.engine._store.get("user-1")
    assert stored is not None
    unseen = served.get("/v1/users/user-1/recommendations?k=18")
    everything = served.get("/v1/users/user-1/recommendations?k=18&seen=true")
    assert unseen["fallback"] is None
    assert len(everything["recommendations"]) == 17  # one item was never trained
    assert 0 < len(unseen["recommendations"]) < 17
    scores = [item["score"] for item in everything["recommendations"]]
    assert scores == sorted(scores, reverse=True)
    assert [item["rank"] for item in unseen["recommendations"]] == list(range(1, len(unseen["recommendations"]) + 1))


def test_interests_find_their_share_and_a_longer_list_begins_like_a_shorter_one(served: Served) -> None:
    lists = {}
    for user_id in served.release.user_ids[:6]:
        by_vector, several, first = (
            served.get(f"/v1/users/{user_id}/recommendations?{query}")["recommendations"]
            for query in ("k=17&seen=true", "k=17&seen=true&from=interests", "k=6&seen=true&from=interests")
        )
        assert [item["item_id"] for item in first] == [item["item_id"] for item in several][:6]
        scores = {item["item_id"]: item["score"] for item in by_vector}
        assert {item["item_id"]: item["score"] for item in several} == pytest.approx(scores, abs=1e-5)
        lists[user_id] = [item["item_id"] for item in by_vector] != [item["item_id"] for item in several]
    assert any(lists.values())
    unseen = served.get("/v1/users/user-1/recommendations?k=18&from=interests")["recommendations"]
    plain = served.get("/v1/users/user-1/recommendations?k=18")["recommendations"]
    assert {item["item_id"] for item in unseen} == {item["item_id"] for item in plain}
    assert served.get("/v1/users/nobody/recommendations?from=interests")["fallback"] == "popular"


def test_requests_for_different_lengths_share_a_batch_and_get_their_own(served: Served) -> None:
    asked = [("GET", f"/v1/users/user-{user}/recommendations?k={user + 1}&seen=true", {}) for user in range(8)]
    lengths = [len(answer.json()["recommendations"]) for answer in served.together(asked)]
    assert lengths == list(range(1, 9))


def test_a_cold_user_gets_popular_items_marked_as_fallback(served: Served) -> None:
    answer = served.get("/v1/users/nobody/recommendations?k=3")
    assert answer["fallback"] == "popular"
    assert [item["item_id"] for item in answer["recommendations"]] == ["item-1", "item-0", "item-2"]
    assert [item["score"] for item in answer["recommendations"]] == [None] * 3


def test_popular_items_leave_out_the_history_too(served: Served) -> None:
    answer = served.get("/v1/users/k%C3%A4ufer%2Fonly%20shown/recommendations?k=18")
    stored = served.engine._store.get(served.release.shown_only)
    assert stored is not None
    assert answer["fallback"] == "popular"
    assert 0 < len(answer["recommendations"]) < 18


def test_without_retrieval_popular_items_stand_in_and_the_reason_is_told(served: Served) -> None:
    served.handles["retrieval"].fails = {"recommend": RuntimeError("gone"), "similar": RuntimeError("gone")}
    items = served.get("/v1/users/user-1/recommendations?k=2")
    assert (items["fallback"], items["degraded"][0]["stage"]) == ("popular", "retrieval")
    users = served.get("/v1/users/user-1/similar")
    assert (users["similar"], users["degraded"][0]["instead"]) == ([], "no users")


def test_similar_users_are_other_users_nearest_first(served: Served) -> None:
    found = served.get("/v1/users/user-1/similar?k=100")["similar"]
    assert len(found) == 23  # all with a vector but the user
    assert "user-1" not in {user["user_id"] for user in found}
    similarities = [user["similarity"] for user in found]
    assert similarities == sorted(similarities, reverse=True)
    assert served.get("/v1/users/nobody/similar")["similar"] == []


def test_an_explanation_gives_a_sentence_for_each_score_and_interest(served: Served) -> None:
    answer = served.get("/v1/users/user-1/explanation")
    assert len(answer["reasons"]) == len(answer["scores"]) + len(answer["interests"])
    assert answer["reasons"][0].startswith("buy_7d is 0.")
    assert "times the base rate of 0.250; mostly because: " in answer["reasons"][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Interest 1 (60%), garden › tools: 12 events around Rake, 1.5 a week, the last 3 days before as_of; "
            "growing: 5 of these events are of the last 20 days, about 40% of all that the user wanted then and 20% "
            "of what it wanted before.",
        ),
        (
            {"state": "new", "name": "Rake"},
            "Interest 1 (60%), Rake: 12 events, 1.5 a week, the last 3 days before as_of; new: all of it is of the "
            "last 20 days.",
        ),
        (
            {"state": "fading", "num_recent": 0, "title": None, "recency_days": 44.0},
            "Interest 1 (60%), garden › tools: 12 events around i7, 1.5 a week, the last 44 days before as_of; fading: "
            "none of these events is of the last 20 days.",
        ),
    ],
)
def test_an_interest_is_explained_by_its_name_its_frequency_and_the_evidence_of_its_state(
    changes: dict[str, Any], sentence: str
) -> None:
    interest = {
        "rank": 1,
        "weight": 0.6,
        "name": "garden › tools",
        "title": "Rake",
        "medoid_item_id": "i7",
        "num_events": 12,
        "events_per_week": 1.5,
        "recency_days": 3.0,
        "state": "growing",
        "recent_days": 20.0,
        "num_recent": 5,
        "recent_share": 0.4,
        "earlier_share": 0.2,
    }
    assert explain_interest({**interest, **changes}) == sentence


def test_the_served_release_is_told(served: Served) -> None:
    answer = served.get("/v1/release")
    assert (answer["release"], answer["num_profiles"]) == ("release-1", 25)
    assert answer["metrics"] == {"retrieval.encoder.hr_at_10": 0.5}


def test_an_overfull_gateway_answers_with_the_stored_profile(served: Served) -> None:
    served.engine._fresh._max_waiting = 0
    answer = served.get("/v1/users/user-1?fresh=true")
    assert answer["degraded"][0]["stage"] == "gateway"
    assert answer["user_id"] == "user-1"
