"""The HTTP contract changes on purpose only: docs/openapi.json is what the application says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from services.gateway.http import openapi_json
from services.gateway.problems import MEDIA_TYPE

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
USER = "/v1/users/{user_id}"
PARTS = ("embedding", "interests", "affinities", "segments", "scores", "recommendations", "similar", "explanation")
GETS = {USER, *(f"{USER}/{part}" for part in PARTS), "/v1/release", "/healthz", "/readyz"} | {
    "/v1/items/{item_id}/similar",
    "/v1/experiments",
    "/v1/experiments/{name}/assignment",
}
POSTS = ("/v1/events", "/v1/users:batchGet", "/v1/audiences:preview", "/v1/audiences:lookalike")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(openapi_json())
    return content


def test_the_application_says_of_itself_what_docs_openapi_json_says(document: dict[str, Any]) -> None:
    regenerate = ".venv/bin/python -m services.gateway.http > docs/openapi.json"
    assert document == orjson.loads(DOCUMENT.read_bytes()), f"Meant? Then look at the difference of: {regenerate}"


def test_the_routes_are_those_of_the_contract(document: dict[str, Any]) -> None:
    routes = {(path, method) for path, operations in document["paths"].items() for method in operations}
    posted = {(path, "post") for path in POSTS}
    assert routes == {(path, "get") for path in GETS} | posted | {(USER, "delete")}


def test_every_error_is_described_as_a_problem_document(document: dict[str, Any]) -> None:
    answers = [
        (path, status, answer)
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
    ]
    errors = [(path, status, set(answer["content"])) for path, status, answer in answers if status[0] != "2"]
    assert {path for path, _, _ in errors} == set(document["paths"]) - {"/healthz"}
    assert all(content == {MEDIA_TYPE} for _, _, content in errors)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> set[str]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        own = {node["$ref"]} if isinstance(node, dict) and isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(child) for child in children))

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
