"""The OpenAPI document against the application, by schemathesis: whatever is asked, the answer is a documented one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway import erasing
from services.gateway.http import create_app
from tests.services.conftest import build_tiny_release, serve

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


app = create_app(None)
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Behind the application, whose routes are known before there is any. No refresh runs that could be waited for."""
    waiting = pytest.MonkeyPatch()
    waiting.setattr(erasing, "REFRESH_WAIT_S", 0.0)
    with serve(build_tiny_release(tmp_path_factory.mktemp("fuzzed")), writable=True) as served:
        app.state.engine = served.engine
        yield
    waiting.undo()


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_a_documented_one(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)
