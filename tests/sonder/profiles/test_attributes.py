"""What the user table says in a profile: joined, rendered, carried over, never from after as_of."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.events.contract import USER_SCHEMA
from sonder.history.timelines import Timelines
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.attributes import FACTS
from sonder.profiles.record import cold_profile, to_json_records

AS_OF = 1_700_000_000_000_000
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)


def row(user_id: str, signup_us: int | None, attributes: dict[str, str], consent: dict[str, bool]) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "signup_at": signup_us,
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
        "consent": [{"name": name, "granted": granted} for name, granted in consent.items()],
    }


def records(*rows: dict[str, Any], carried: list[bytes] | None = None) -> list[bytes]:
    """JSON of ada and bob, of whom the user table says `rows`, or their stored records."""
    nobody = Timelines(
        user_ids=pa.array(["ada", "bob"]),
        offsets=np.zeros(3, np.int64),
        items=np.zeros(0, np.int32),
        actions=np.zeros(0, np.int16),
        surfaces=np.zeros(0, np.int16),
        times_us=np.zeros(0, np.int64),
        values=np.zeros(0),
    )
    users = pa.Table.from_pylist(list(rows), schema=USER_SCHEMA)
    outputs = StageOutputs(vectors=None, interests=None, affinities=None, segments=None, scores=None, users=users)
    profiles = assemble_profiles(nobody, outputs, base_rates={}, as_of_us=AS_OF)
    return to_json_records(profiles, computed_at_us=AS_OF, stored=carried)


def facts(record: bytes) -> dict[str, Any]:
    content = orjson.loads(record)
    return {name: content[name] for name in FACTS}


def test_facts_are_plain_objects_and_null_without_a_row() -> None:
    ada, bob = records(row("ada", AS_OF - 1_000_000, {"land": 'D"E'}, {"ads": True, "email": False}))
    assert facts(ada) == {
        "signup_at": "2023-11-14T22:13:19+00:00",
        "attributes": {"land": 'D"E'},
        "consent": {"ads": True, "email": False},
    }
    assert facts(bob) == dict.fromkeys(FACTS)


def test_a_row_that_says_nothing_gives_empty_objects() -> None:
    assert facts(records(row("bob", None, {}, {}))[1]) == {"signup_at": None, "attributes": {}, "consent": {}}


@pytest.mark.parametrize(("signup_us", "is_known"), [(AS_OF - 1, True), (AS_OF, False), (AS_OF + 1, False)])
def test_a_sign_up_that_is_not_before_as_of_is_not_known(signup_us: int, is_known: bool) -> None:
    assert (facts(records(row("ada", signup_us, {}, {}))[0])["signup_at"] is not None) == is_known


@given(st.dictionaries(NAMES, NAMES, max_size=4), st.dictionaries(NAMES, st.booleans(), max_size=3))
def test_whatever_stands_in_a_value_the_record_is_json_and_carries_over(
    attributes: dict[str, str], consent: dict[str, bool]
) -> None:
    stored = records(row("ada", AS_OF - 123_456, attributes, consent))
    assert facts(stored[0])["attributes"] == attributes
    assert facts(stored[0])["consent"] == consent
    assert records(carried=stored) == stored


def test_profiles_made_before_there_were_user_tables_have_nulls() -> None:
    old = cold_profile("ada", base_rates={}, as_of_us=AS_OF).drop_columns(list(FACTS))
    assert facts(to_json_records(old, computed_at_us=AS_OF)[0]) == dict.fromkeys(FACTS)
