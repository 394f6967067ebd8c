"""Audience memberships in answers: as the last refresh counted, by the rules on a fresh profile, without a restart."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipelines.audience import refresh_audiences, save_audience
from services.gateway import memberships as module
from services.gateway.schemas import Profile, SegmentsAnswer
from sonder.core.storage import Folder
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule

if TYPE_CHECKING:
    from conftest import Served

TERMS = (
    "lifecycle in ('core', 'casual', 'new')",
    "recency_days < {n}",
    "tenure_days between 5 and {n}",
    "num_events > {n}",
    "score.buy_7d > 0.{n:02d}",
    "interest('shop/part-0') > 0.{n:02d}",
    "affinity('shop/part-1') < 0.{n:02d}",
    "count(buy, {n}d) > 3",
    "sum({n}d) > 100",
    "days(buy, {n}d) <= 4",
    "cluster = 'first axis'",
    "attribute.country is known",
    "not consent.email",
    "is_cold",
)


def refresh(served: Served) -> None:
    refresh_audiences(served.release.workspace, num_workers=0)


def audiences_of(served: Served, user_id: str, query: str = "") -> list[dict[str, Any]]:
    answer = served.get(f"/v1/users/{user_id}/segments{query}")
    SegmentsAnswer.model_validate(answer)
    found: list[dict[str, Any]] = answer["audiences"]
    assert found == served.get(f"/v1/users/{user_id}{query}")["audiences"]
    return found


def names_of(served: Served, user_id: str, query: str = "") -> list[str]:
    return [audience["name"] for audience in audiences_of(served, user_id, query)]


def test_what_is_saved_and_refreshed_shows_up_without_a_restart(own_served: Served) -> None:
    assert audiences_of(own_served, "user-1") == []
    save_audience(own_served.release.workspace, "everybody", "num_events > 0")
    own_served.engine._memberships.look()
    assert audiences_of(own_served, "user-1") == []  # nobody has counted
    as_of = own_served.get("/v1/users/user-1")["as_of"]
    told = {"name": "everybody", "definition_version": 1, "entered_at": as_of, "as_of": as_of}
    assert audiences_of(own_served, "user-1", "?fresh=true") == [{**told, "source": "fresh"}]
    refresh(own_served)
    own_served.engine._memberships.look()
    assert audiences_of(own_served, "user-1") == [{**told, "source": "refresh"}]
    assert names_of(own_served, "nobody") == names_of(own_served, "nobody", "?fresh=true") == []


def test_a_running_gateway_looks_by_itself(own_served: Served) -> None:
    members = module.AudienceMemberships(own_served.engine._previews._release, look_every_s=0.01)
    save_audience(own_served.release.workspace, "everybody", "num_events > 0")
    deadline = time.monotonic() + 5
    while not members._opened.index.audiences and time.monotonic() < deadline:  # type: ignore[union-attr]
        time.sleep(0.01)
    members.close()
    index = AudienceIndex.read(own_served.release.workspace.audiences)
    assert [audience.name for audience in index.audiences] == ["everybody"]
    assert time.monotonic() < deadline


def test_reading_memberships_makes_no_hop_and_a_batch_has_them_too(own_served: Served) -> None:
    save_audience(own_served.release.workspace, "busy", "num_events > 20")
    refresh(own_served)
    own_served.engine._memberships.look()
    ids = [*own_served.release.user_ids, "nobody", own_served.release.shown_only]
    profiles = own_served.request("POST", "/v1/users:batchGet", json={"user_ids": ids}).json()["profiles"]
    for profile in profiles:
        Profile.model_validate(profile)
        assert bool(profile["audiences"]) is (profile["num_events"] > 20)
    assert any(profile["audiences"] for profile in profiles)
    assert "audiences" not in own_served.get("/v1/users/user-1?fields=scores")
    assert all(handle.calls == [] for handle in own_served.handles.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_the_rules_online_find_whom_the_refresh_found(own_served: Served, seed: int) -> None:
    draw = np.random.default_rng(seed)
    texts = [term.format(n=int(draw.integers(10, 60))) for term in TERMS]
    for _ in range(12):
        left, right = (TERMS[i].format(n=int(draw.integers(10, 60))) for i in draw.integers(0, len(TERMS), 2))
        texts.append(f"{left} {draw.choice(['and', 'or'])} not ({right})")
    catalogue = AudienceCatalogue(own_served.release.workspace.audiences)
    for number, text in enumerate(texts):
        catalogue.save(f"rule-{number:02d}", text, Rule.parse(text), release="release-1", now="now")
    refresh(own_served)
    own_served.engine._memberships.look()
    ids = [*own_served.release.user_ids, "k%C3%A4ufer%2Fonly%20shown"]
    paths = [f"/v1/users/{user_id}/segments{query}" for query in ("", "?fresh=true") for user_id in ids]
    answers = [answer.json()["audiences"] for answer in own_served.together([("GET", path, {}) for path in paths])]
    stored, fresh = answers[: len(ids)], answers[len(ids) :]
    assert fresh == [[{**audience, "source": "fresh"} for audience in audiences] for audiences in stored]
    assert len({audience["name"] for audiences in stored for audience in audiences}) > len(texts) // 2


def test_a_newer_rule_is_fresh_at_once_and_stored_after_its_refresh(own_served: Served) -> None:
    workspace = own_served.release.workspace
    save_audience(workspace, "busy", "num_events > 0")
    refresh(own_served)
    save_audience(workspace, "busy", "num_events > 1000")
    own_served.engine._memberships.look()
    assert [(a["name"], a["definition_version"]) for a in audiences_of(own_served, "user-1")] == [("busy", 1)]
    assert names_of(own_served, "user-1", "?fresh=true") == []
    refresh(own_served)
    own_served.engine._memberships.look()
    assert names_of(own_served, "user-1") == []


def test_an_audience_that_the_release_cannot_evaluate_is_named_and_answered_as_stored(own_served: Served) -> None:
    workspace = own_served.release.workspace
    save_audience(workspace, "busy", "num_events > 0")
    save_audience(workspace, "odd", "num_events > 1")
    refresh(own_served)
    (workspace.audiences / "odd" / "v002.json").write_json(
        {**(workspace.audiences / "odd" / "v001.json").read_json(), "version": 2, "rule": "score.gone > 0.5"}
    )
    refresh(own_served)
    own_served.engine._memberships.look()
    answer = own_served.get("/v1/users/user-1/segments?fresh=true")
    assert [(a["name"], a["source"]) for a in answer["audiences"]] == [("busy", "fresh"), ("odd", "refresh")]
    (missing,) = answer["degraded"]
    assert missing["stage"] == "audiences"
    assert "cannot evaluate audience odd: No score 'gone'" in missing["reason"]
    assert "degraded" not in own_served.get("/v1/users/user-1?fresh=true&fields=scores")


def test_a_refresh_that_is_killed_leaves_the_old_membership_in_answers(
    own_served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = own_served.release.workspace
    for name in ("all-a", "all-b"):
        save_audience(workspace, name, "num_events > 0")
    refresh(own_served)
    own_served.engine._memberships.look()
    before = audiences_of(own_served, "user-1")
    for name in ("all-a", "all-b"):
        save_audience(workspace, name, "num_events > 100000")
    import pipelines.audience

    publish = pipelines.audience.publish

    def dies(staged: Folder, final: Folder, manifest: dict[str, Any]) -> None:
        if manifest["audience"] == "all-b":
            raise KeyboardInterrupt
        publish(staged, final, manifest)

    with monkeypatch.context() as patched:
        patched.setattr(pipelines.audience, "publish", dies)
        with pytest.raises(KeyboardInterrupt):
            refresh(own_served)
    own_served.engine._memberships.look()
    assert audiences_of(own_served, "user-1") == before  # of both, though one of them is published
    refresh(own_served)
    own_served.engine._memberships.look()
    assert audiences_of(own_served, "user-1") == []


def test_memberships_that_cannot_be_opened_are_degraded_and_the_rest_is_answered(
    own_served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_audience(own_served.release.workspace, "everybody", "num_events > 0")
    refresh(own_served)
    release = own_served.engine._previews._release
    with monkeypatch.context() as patched:
        patched.setattr(module, "ensure_memberships", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
        members = module.AudienceMemberships(release, look_every_s=60)
    own_served.engine._memberships.close()
    own_served.engine._memberships = members
    for query in ("", "?fresh=true"):
        answer = own_served.get(f"/v1/users/user-1/segments{query}")
        assert answer["audiences"] is None
        assert [missing["stage"] for missing in answer["degraded"]] == ["audiences"]
        assert answer["segments"]["lifecycle"]
    members.look()
    assert names_of(own_served, "user-1") == ["everybody"]
