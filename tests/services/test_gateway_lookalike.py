"""POST /v1/audiences:lookalike over the retrieval deployment of the tiny release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Served

PATH = "/v1/audiences:lookalike"


def ask(served: Served, seeds: list[str], size: int) -> Any:
    return served.request("POST", PATH, json={"seeds": seeds, "size": size})


def test_an_audience_is_ranked_and_holds_no_seed(served: Served) -> None:
    seeds = served.release.user_ids[:12]
    answer = ask(served, [*seeds, "stranger", served.release.shown_only], 5)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content["seeds"] == {"given": 14, "used": 12, "unknown": 1, "cold": 1}
    assert content["release"] == served.release.release
    assert "12 seeds" in content["warnings"][0]
    audience = content["audience"]
    assert [member["rank"] for member in audience] == [1, 2, 3, 4, 5]
    assert not {member["user_id"] for member in audience} & set(seeds)
    similarities = [member["similarity"] for member in audience]
    assert similarities == sorted(similarities, reverse=True)
    assert ask(served, [*seeds, "stranger", served.release.shown_only], 5).json() == content


def test_excluded_users_are_neither_in_the_audience_nor_ranked(served: Served) -> None:
    seeds = served.release.user_ids[:12]
    everybody = ask(served, seeds, 100).json()
    out = [everybody["audience"][0]["user_id"], everybody["audience"][3]["user_id"]]
    body = {"seeds": seeds, "size": 100, "exclude": [*out, out[0], "stranger"]}
    content = served.request("POST", PATH, json=body).json()
    assert (content["excluded"], everybody["excluded"]) == (3, 0)
    assert content["ranked_users"] == everybody["ranked_users"] - 2 == len(content["audience"])
    left = [member["user_id"] for member in everybody["audience"] if member["user_id"] not in out]
    assert [member["user_id"] for member in content["audience"]] == left
    similarity = {member["user_id"]: member["similarity"] for member in everybody["audience"]}
    assert all(member["similarity"] == similarity[member["user_id"]] for member in content["audience"])
    nobody = served.request("POST", PATH, json={**body, "exclude": served.release.user_ids}).json()
    assert (nobody["ranked_users"], nobody["audience"]) == (0, [])


def test_too_few_seeds_are_a_problem_that_counts_them(served: Served) -> None:
    answer = ask(served, [*served.release.user_ids[:3], "stranger"], 5)
    assert answer.status_code == 422
    assert "3 of 4 seeds" in answer.json()["detail"]


def test_malformed_requests_are_refused(served: Served) -> None:
    assert ask(served, [], 5).status_code == 422
    assert ask(served, ["u"], 0).status_code == 422
    assert ask(served, ["u"], 10_001).status_code == 422


def test_a_failing_retrieval_is_said_to_fail(served: Served) -> None:
    served.handles["retrieval"].fails["lookalike"] = RuntimeError("broken")
    assert ask(served, served.release.user_ids[:12], 5).status_code == 503
