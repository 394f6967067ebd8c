"""What a request tells of itself: spans, metrics, log lines and its id, and that none of them names a user."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from sonder.core import telemetry
from sonder.core.logs import configure_json_logs
from sonder.core.metrics import REGISTRY

if TYPE_CHECKING:
    from conftest import Served

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with telemetry.listening(SimpleSpanProcessor(exporter)):
        yield exporter


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    logger, stream = logging.getLogger("sonder"), io.StringIO()
    before = logger.handlers[:], logger.level, logger.propagate
    configure_json_logs("sonder-gateway", stream, logging.DEBUG)
    yield stream
    logger.handlers[:], logger.level, logger.propagate = before


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_fresh_request_is_one_trace_through_every_stage(spans: InMemorySpanExporter, served: Served) -> None:
    started = {"x-request-start": f"t={time.time_ns() // 1000 - 5_000}"}
    assert served.request("GET", "/v1/users/user-1?fresh=true", headers=CALLER | started).status_code == 200
    found: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    above = {"proxy": None, "GET /v1/users/{user_id}": "proxy", "fresh": "GET /v1/users/{user_id}"}
    above |= {f"stage {stage}": "fresh" for stage in ("embedding", "segmentation", "scoring")}
    above |= {stage: f"stage {stage}" for stage in ("embedding", "segmentation", "scoring")}
    for name, parent in above.items():
        span = found[name]
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.parent is not None
        expected = PARENT if parent is None else f"{found[parent].context.span_id:016x}"  # type: ignore[union-attr]
        assert f"{span.parent.span_id:016x}" == expected, name
    request = found["GET /v1/users/{user_id}"]
    assert (request.attributes or {})["sonder.release"] == served.release.release
    assert (found["fresh"].attributes or {})["users"] == 1
    assert (request.start_time or 0) - (found["proxy"].start_time or 0) >= 5_000_000


def test_requests_of_one_moment_share_a_batch_that_is_linked_to_all(
    spans: InMemorySpanExporter, served: Served
) -> None:
    served.together([("GET", f"/v1/users/user-{user}?fresh=true", {}) for user in range(8)])
    finished = spans.get_finished_spans()
    batches = [span for span in finished if span.name == "fresh"]
    requests = {span.context.span_id for span in finished if span.name == "GET /v1/users/{user_id}"}  # type: ignore[union-attr]
    ids = [span.parent.span_id for span in batches if span.parent] + [
        link.context.span_id for span in batches for link in span.links
    ]
    assert len(batches) < 8
    assert sorted(ids) == sorted(requests)
    assert sum(int((span.attributes or {})["users"]) for span in batches) == 8  # type: ignore[call-overload]


def test_no_span_holds_a_user_id(spans: InMemorySpanExporter, served: Served) -> None:
    for path in ("user-1", "user-1?fresh=true", "user-1/recommendations", "user-1/similar", "user-1/nothing"):
        served.request("GET", f"/v1/users/{path}")
    served.request("POST", "/v1/users:batchGet", json={"user_ids": ["user-1", "user-2"]})
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert "store get" in told or "fresh" in told
    assert "user-1" not in told


@pytest.mark.parametrize("start", ["t=1", "nonsense", "t=99999999999999999999999", f"t={10**18}"])
def test_a_start_that_cannot_be_is_not_believed(start: str, spans: InMemorySpanExporter, served: Served) -> None:
    assert served.request("GET", "/healthz", headers={"x-request-start": start}).status_code == 200
    assert [span.name for span in spans.get_finished_spans()] == ["GET /healthz"]


def test_a_request_id_comes_back_on_answers_and_problems(served: Served) -> None:
    for path, status in (("/healthz", 200), ("/nothing", 404), ("/v1/users/user-1?fields=mood", 422)):
        answer = served.request("GET", path, headers={"x-request-id": "mine-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine-1")
    made = [served.request("GET", "/healthz").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_a_bug_has_its_id_and_is_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.engine, "release", lambda: 1 / 0)
    labels = {"method": "GET", "route": "/v1/release", "status": "500"}
    before = value("sonder_request_seconds_count", **labels)
    answer = served.request("GET", "/v1/release", headers={"x-request-id": "mine-2"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-2")
    assert value("sonder_request_seconds_count", **labels) == before + 1


def test_log_lines_of_a_failing_stage_carry_the_request_and_no_user(served: Served, log: io.StringIO) -> None:
    served.handles["scoring"].fails["score"] = RuntimeError("broken")
    served.request("GET", "/v1/users/user-1?fresh=true", headers={**CALLER, "authorization": "Bearer hunter2"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    failed = [line for line in lines if "scoring" in line["message"]]
    assert failed
    assert all(line["request_ids"] == ["mine-1"] for line in lines)
    (request,) = [line for line in lines if line["message"] == "request"]
    assert (request["route"], request["status"]) == ("/v1/users/{user_id}", 200)
    assert "user-1" not in log.getvalue()
    assert "hunter2" not in log.getvalue()


def test_metrics_count_by_route_stage_and_batch_and_say_what_is_missing(served: Served) -> None:
    names = ("sonder_age_at_read_seconds_count", "sonder_degraded_answers_total", "sonder_batch_users_count")
    before = value(names[0]), value(names[1], stage="scoring"), value(names[2], batch="fresh")
    served.handles["scoring"].fails["score"] = RuntimeError("broken")
    served.get("/v1/users/user-1")
    served.get("/v1/users/user-1?fresh=true")
    after = value(names[0]), value(names[1], stage="scoring"), value(names[2], batch="fresh")
    assert [new - old for old, new in zip(before, after, strict=True)] == [2, 1, 1]
    answer = served.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["sonder_store_profiles"].samples[0].value == 25
    assert families["sonder_store_bytes"].samples[0].value > 0
    routes = {sample.labels.get("route") for sample in families["sonder_request_seconds"].samples}
    assert "/v1/users/{user_id}" in routes
    assert not any("user-1" in str(route) for route in routes)


def test_invented_methods_and_paths_make_no_new_series(served: Served) -> None:
    served.request("BREW", "/v1/users/user-1/coffee")
    assert value("sonder_request_seconds_count", method="other", route="unknown", status="404") >= 1
