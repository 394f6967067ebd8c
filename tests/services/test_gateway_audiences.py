"""POST /v1/audiences:preview: the counts of the stored profiles, an estimate with its error, and mistakes in place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from services.gateway.audiences import AudiencePreviews
from services.gateway.schemas import AudiencePreview
from sonder.releases.artefacts import Release
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

PREVIEW = "/v1/audiences:preview"


def preview(served: Served, rule: str, **content: Any) -> dict[str, Any]:
    answer = served.request("POST", PREVIEW, json={"rule": rule, **content})
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    assert set(parsed) == set(AudiencePreview.model_fields)
    AudiencePreview.model_validate(parsed)
    return parsed


def test_a_preview_counts_the_profiles_that_reads_answer_with(served: Served) -> None:
    ids = [*served.release.user_ids, served.release.shown_only]
    profiles = served.request("POST", "/v1/users:batchGet", json={"user_ids": ids}).json()["profiles"]
    wanted = {p["user_id"] for p in profiles if p["num_events"] > 20 and p["scores"][0]["value"] > 0.1}
    told = preview(served, "num_events > 20 and score.buy_7d > 0.1", sample=100)
    assert (told["size"], told["num_profiles"], told["is_exact"]) == (len(wanted), len(ids), True)
    assert set(told["sample"]) == wanted
    assert wanted
    assert preview(served, "count(impression, 60d) > 0")["sample"] == [served.release.shown_only]


def test_a_preview_names_saved_audiences_that_share_users(served: Served) -> None:
    catalogue = AudienceCatalogue(served.release.workspace.audiences)
    for name, text in (("busy", "num_events > 20"), ("gone", "score.gone > 0.5")):
        catalogue.save(name, text, Rule.parse(text), release="release-1", now="2026-01-31T00:00:00+00:00")
    told = preview(served, "is_cold or num_events > 30")
    assert [overlap["audience"] for overlap in told["overlap"]] == ["busy"]
    assert 0 < told["overlap"][0]["shared"] <= told["size"]


def test_a_mistake_is_a_problem_with_its_place(served: Served) -> None:
    answer = served.request("POST", PREVIEW, json={"rule": "lifecycle = 'cor'"})
    assert answer.status_code == 422
    assert "line 1, column 13" in answer.json()["detail"]
    assert "\n              ^^^^^" in answer.json()["detail"]
    for body in ({}, {"rule": ""}, {"rule": "is_cold", "sample": -1}, {"rule": "is_cold", "more": 1}, []):
        assert served.request("POST", PREVIEW, json=body).status_code == 422


def test_many_users_are_estimated_from_a_sample_with_its_error(tiny_release: TinyRelease) -> None:
    release = Release.open(tiny_release.workspace, tiny_release.release)
    previews = AudiencePreviews(release, num_profiles=25, sample_users=10)
    first, again = (asyncio.run(previews.preview("num_events > 20", num_sampled=3)) for _ in range(2))
    previews.close()
    assert (first["num_evaluated"], first["is_exact"]) == (10, False)
    assert first["size_low"] <= first["size"] <= first["size_high"]
    assert first["size_low"] < first["size_high"]
    assert first == again
