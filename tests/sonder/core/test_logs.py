from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.logs import MOST_CHARACTERS, MOST_IDS, configure_json_logs, for_requests, redacted, request_id_of


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    log, stream = logging.getLogger("sonder"), io.StringIO()
    before = log.handlers[:], log.level, log.propagate
    configure_json_logs("sonder-test", stream)
    yield stream
    log.handlers[:], log.level, log.propagate = before


def test_a_line_is_one_object_with_the_ids_of_its_requests(lines: io.StringIO) -> None:
    with for_requests(["a", "b", "a"]):
        logging.getLogger("sonder").warning("stage %s: no answer", "scoring")
    logging.getLogger("sonder").info("outside")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert (first["message"], first["request_ids"], first["level"]) == (
        "stage scoring: no answer",
        ["a", "b"],
        "WARNING",
    )
    assert first["service"] == "sonder-test"
    assert "request_ids" not in second


def test_a_large_batch_keeps_the_first_ids(lines: io.StringIO) -> None:
    with for_requests(map(str, range(100))):
        logging.getLogger("sonder").warning("slow")
    assert len(json.loads(lines.getvalue())["request_ids"]) == MOST_IDS


def test_an_exception_is_in_its_line_without_the_user_of_its_path(lines: io.StringIO) -> None:
    try:
        raise RuntimeError("GET /v1/users/alice%40example.org?fresh=true failed")
    except RuntimeError:
        logging.getLogger("sonder").exception("bug")
    (line,) = lines.getvalue().splitlines()
    assert "alice" not in line
    assert "/v1/users/[user]" in json.loads(line)["exception"]


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer hunter2",
        '{"api_key": "hunter2"}',
        "redis password=hunter2 refused",
        "RAY_AUTH_TOKEN=hunter2",
        "GET /v1/users/hunter2/scores 500",
        "GET /v1/users/hunter2",
    ],
)
def test_secrets_and_users_are_taken_out(text: str) -> None:
    assert "hunter2" not in redacted(text)


@given(st.text(max_size=300))
def test_any_id_that_a_caller_sends_becomes_a_plain_short_one(given_id: str) -> None:
    plain = request_id_of(given_id)
    assert 0 < len(plain) <= MOST_CHARACTERS
    assert plain.isascii()
    assert plain.isprintable()


def test_a_good_id_is_kept_and_a_missing_one_is_new_each_time() -> None:
    assert request_id_of("req-7f.a") == "req-7f.a"
    assert request_id_of(None) != request_id_of(None)
