"""Columns of rules from profiles and histories: known values, the same for one profile, nothing of the future."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest

from sonder.core.errors import InvalidRule
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.profiles.audience_counts import Counts, evaluate, preview_of, wilson_interval
from sonder.profiles.audience_fields import field_columns, schema_of
from sonder.profiles.audience_values import field_values
from sonder.profiles.record import PROFILE_SCHEMA, to_json_records
from sonder.segments.rules.rule import Rule, fields_of_rules
from sonder.segments.rules.syntax import Value
from tests.tiny_log import ACTIONS, random_log, timelines_of, vocabulary_of

AS_OF_DAY = 100
SCORES = {"buy": 1, "churn": 1, "spend_30d": 90_000, "next_10d/garden": 1}  # name -> largest value
RULES = [
    Rule.parse(text)
    for text in (
        "lifecycle = 'core' and is_cold and cluster = 'x'",
        "since_days + 0 > 1".replace(" + 0", ""),
        "recency_days > 1 and tenure_days > 1 and num_events > 1 and active_days > 1 and num_interests > 1",
        "first_seen > 1970-01-05 and last_seen > 1970-01-05",
        "score.buy > 0.2 and score.churn > 0.2 and consent.ads and attribute.age > 3 and attribute.age = 'x'",
        "score.spend_30d > 45000.5 and score.'next_10d/garden' > 0.3",
        "interest('garden') > 0.2 and interest('garden/tools') > 0.2 and interest('i7') > 0.2",
        "affinity('garden') > 0.2 and affinity('home') > 0.2",
        "count(buy, 7d) > 1 and count(30d) > 1 and sum(buy, 90d) > 1 and sum(7d) > 1 and days(30d) > 1",
        "days(view, 12h) > 1 and count('never seen', 30d) > 1",
    )
]
FIELDS = fields_of_rules(RULES)
OPTIONAL = ("attributes", "consent", "affinities")  # an older release has no such columns


def profile_of(draw: np.random.Generator, user_id: str, first_us: int | None, last_us: int | None) -> dict[str, Any]:
    """A random profile with unknowns."""

    def maybe(value: Any) -> Any:
        return value if draw.random() < 0.7 else None

    interests = [
        {"rank": rank, "medoid_item_id": f"i{rank}", "category": maybe(category), "weight": float(draw.random())}
        for rank, category in enumerate(draw.permutation(["garden/tools", "garden", "gardens", "home"]), 6)
    ]
    return {
        "user_id": user_id,
        "as_of": AS_OF_DAY * DAY,
        "is_cold": bool(draw.random() < 0.5),
        "num_events": int(draw.integers(0, 5)),
        "first_seen": first_us,
        "last_seen": last_us,
        "segments": {
            "lifecycle": maybe("core"),
            "since": maybe(90 * DAY + 1),
            "active_days": maybe(3),
            "cluster": maybe("x"),
        },
        "interests": interests[: int(draw.integers(0, 5))],
        "scores": [{"name": name, "value": scale * float(draw.random())} for name, scale in SCORES.items() if maybe(1)],
        "attributes": maybe([{"name": "age", "value": maybe(str(draw.choice(["31", "4.5", "x", "1e5", ""])))}]),
        "consent": maybe([{"name": "ads", "granted": maybe(True)}]),
        "affinities": maybe([{"category": "garden", "level": 1, "share": 0.2, "lift": 2.0}]) or [],
    }


def world() -> tuple[pa.Table, Timelines]:
    draw = np.random.default_rng(3)
    timelines = timelines_of(random_log(4, num_users=80, num_items=5, num_days=AS_OF_DAY + 20), values=0.1)
    rows = []
    for user, (start, end) in enumerate(zip(timelines.offsets[:-1], timelines.offsets[1:], strict=True)):
        times = timelines.times_us[start:end][timelines.times_us[start:end] < AS_OF_DAY * DAY]
        ends = (int(times[0]), int(times[-1])) if len(times) else (None, None)
        rows.append(profile_of(draw, timelines.user_ids[user].as_py(), *ends))
    return pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA), timelines


PROFILES, TIMELINES = world()


def one_by_one(timelines: Timelines, dropped: tuple[str, ...]) -> list[dict[str, Value | None]]:
    """The values of each user, from its JSON record."""
    found = []
    for row, body in enumerate(to_json_records(PROFILES, computed_at_us=0)):
        record = {name: value for name, value in orjson.loads(body).items() if name not in dropped}
        found.append(field_values(FIELDS, record, timelines.take(np.array([row])), ACTIONS))
    return found


@pytest.mark.parametrize("dropped", [(), OPTIONAL], ids=["now", "older release"])
def test_the_columns_of_all_users_are_the_values_of_each_user(dropped: tuple[str, ...]) -> None:
    profiles = PROFILES.drop_columns(list(dropped))
    columns = field_columns(FIELDS, profiles, TIMELINES, ACTIONS)
    values = one_by_one(TIMELINES, dropped)
    assert columns.to_dicts() == values
    held = evaluate(RULES, profiles, TIMELINES, ACTIONS).rows()
    assert held == [tuple(rule.holds(row) for rule in RULES) for row in values]
    for name in ("consent.ads", "attribute.age", "affinity('home')"):
        assert (columns[name].null_count() == columns.height) is bool(dropped)


def test_what_comes_later_changes_nothing() -> None:
    now = field_columns(FIELDS, PROFILES, TIMELINES, ACTIONS)
    assert TIMELINES.times_us.max() >= AS_OF_DAY * DAY
    past = TIMELINES.before(AS_OF_DAY * DAY)
    assert field_columns(FIELDS, PROFILES, past, ACTIONS).equals(now)


def test_windows_begin_and_end_where_they_say() -> None:
    timelines = timelines_of(
        {"a": [(93, 0, "buy"), (92.9, 0, "buy"), (99.9, 0, "view"), (100, 0, "buy")], "b": []}, values=2.5
    )
    profiles = PROFILES.slice(0, 2)
    rule = Rule.parse("count(buy, 7d) > 0 and count(7d) > 0 and sum(7d) > 0 and days(8d) > 0")
    found = field_columns(rule.fields, profiles, timelines, ACTIONS)
    assert found.rows() == [(1.0, 2.0, 5.0, 3.0), (0.0, 0.0, 0.0, 0.0)]


def test_an_interest_counts_its_category_and_all_below_it_but_no_namesake() -> None:
    entries = [("garden/tools", 0.5), ("garden", 0.2), ("gardens", 0.2), (None, 0.1)]
    row = profile_of(np.random.default_rng(0), "a", None, None) | {
        "interests": [{"medoid_item_id": "i7", "category": path, "weight": weight} for path, weight in entries]
    }
    profiles = pa.Table.from_pylist([row], schema=PROFILE_SCHEMA)
    rule = Rule.parse("interest('garden') = 0.7 and interest('garden/tools') = 0.5 and interest('i7') = 0.1")
    assert evaluate([rule], profiles, None, ACTIONS).item() is True
    assert evaluate([Rule.parse("interest('shoes') = 0")], profiles, None, ACTIONS).item() is True


def test_the_schema_knows_the_names_of_the_log() -> None:
    schema = schema_of(vocabulary_of(["garden/tools", None]), ["buy"])
    assert Rule.parse("interest('garden') > 0 and interest('i1') > 0 and count(hide, 3d) > 0 and score.buy > 0", schema)
    for text in ("interest('i0') > 0", "count(hid, 3d) > 0", "score.churn > 0"):
        with pytest.raises(InvalidRule):
            Rule.parse(text, schema)


def test_counts_of_parts_add_up_to_the_counts_of_the_whole() -> None:
    rules = [Rule.parse("consent.ads or num_events > 2"), Rule.parse("is_cold")]
    held, ids = evaluate(rules, PROFILES, None, ACTIONS), PROFILES.column("user_id").combine_chunks()
    whole = Counts.of(held, ids, num_sampled=5)
    parts = [Counts.of(held[rows], ids[rows], num_sampled=5) for rows in (slice(0, 30), slice(30, 31), slice(31, 80))]
    assert Counts.total(map(Counts.from_dict, map(Counts.to_dict, parts)), num_sampled=5) == whole
    is_in, is_cold = (held[name].fill_null(False) for name in ("0", "1"))
    assert (whole.size, whole.shared) == (is_in.sum(), ((is_in & is_cold).sum(),))
    assert 0 < whole.num_unknown == held["0"].null_count()
    members = set(pl.Series(ids.to_pylist()).filter(is_in))
    assert len(whole.sample) == 5
    assert {user_id for _, user_id in whole.sample} < members


def test_a_preview_of_a_sample_states_its_error_and_one_of_everybody_is_exact() -> None:
    counts = Counts(num_users=1_000, size=100, num_unknown=10, saved_sizes=(200,), shared=(50,))
    sampled = preview_of(counts, num_profiles=50_000, saved=["lapsing"])
    assert (sampled["size"], sampled["share"], sampled["is_exact"], sampled["num_unknown"]) == (5_000, 0.1, False, 500)
    assert sampled["size_low"] < 5_000 < sampled["size_high"]
    overlap = {"audience": "lapsing", "size": 10_000, "shared": 2_500, "share_of_this": 0.5, "share_of_that": 0.25}
    assert sampled["overlap"] == [overlap]
    exact = preview_of(counts, num_profiles=1_000, saved=["lapsing"])
    assert (exact["is_exact"], exact["size_low"], exact["size"], exact["size_high"]) == (True, 100, 100, 100)
    assert wilson_interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
