"""Each kind of metric at each border of its window, held to a slow readable reference over random logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from sonder.core.errors import ConfigurationError
from sonder.experiments.metrics import TIME, check_names, num_mature, user_numbers
from sonder.experiments.specification import Experiment, MetricSpec

START = datetime(2026, 3, 1, tzinfo=UTC)  # of the exposure, in the small tests
TICK = timedelta(microseconds=1)
LATE = START + timedelta(days=90)
Event = tuple[str, datetime, str, str | None, float | None]  # user, time, action, surface, value


def experiment_of(*metrics: dict[str, Any], pre_days: float = 7) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "test", "hypothesis": "it is better", "arms": [{"name": "a"}, {"name": "b", "release": "r-2"}],
            "metrics": metrics, "primary": metrics[0]["name"], "minimum_effect": 0.1, "pre_days": pre_days,
        }
    )  # fmt: skip


def days(number: float) -> timedelta:
    return timedelta(days=number)


def bought(*moments: datetime, action: str = "buy", value: float | None = 2.0, user: str = "u") -> list[Event]:
    return [(user, moment, action, "home", value) for moment in moments]


def frame_of(events: Sequence[Event]) -> pl.DataFrame:
    columns = ["user_id", "timestamp", "action", "surface", "value"]
    types = {"user_id": pl.String, "action": pl.String, "surface": pl.String, "value": pl.Float64}
    frame = pl.DataFrame(events, schema=columns, schema_overrides=types, orient="row")
    return frame.with_columns(pl.col("timestamp").cast(TIME))


def exposed_of(users: dict[str, datetime]) -> pl.DataFrame:
    rows = [(user, "a" if number % 2 else "b", moment) for number, (user, moment) in enumerate(users.items())]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "arm": pl.String, "exposed_at": TIME}, orient="row")


def numbers_of(
    metric: dict[str, Any], events: Sequence[Event], *, until: datetime = LATE, pre_days: float = 7
) -> dict[str, Any]:
    """The one row of the user u, exposed at START."""
    experiment = experiment_of({"name": "m", **metric}, pre_days=pre_days)
    return user_numbers(experiment, exposed_of({"u": START}), frame_of(events), until=until).row(0, named=True)


CONVERSION = {"kind": "conversion", "action": "buy", "within_days": 7}
COUNT = CONVERSION | {"kind": "count"}
VALUE = CONVERSION | {"kind": "value"}
RATIO = {"kind": "ratio", "action": "click", "per": "view", "within_days": 7}
DAY_ONE = {"kind": "retention", "day": 1}
WAIT = CONVERSION | {"kind": "time_to_event"}


def test_an_event_at_the_exposure_is_after_it_and_one_at_the_end_of_the_window_outside() -> None:
    at_borders = bought(START, START - TICK, START + days(7), START + days(7) - TICK)
    assert numbers_of(COUNT, at_borders)["m"] == 2
    assert numbers_of(COUNT, at_borders)["m.pre"] == 1
    assert numbers_of(COUNT, bought(START - days(7)))["m.pre"] == 1
    assert numbers_of(COUNT, bought(START - days(7) - TICK))["m.pre"] == 0


def test_a_window_that_ends_at_until_is_over_and_a_moment_later_it_is_not() -> None:
    events = bought(START + days(1), START - days(1))
    over, open_still = (numbers_of(COUNT, events, until=START + days(7) - wait) for wait in (0 * TICK, TICK))
    assert (over["m"], over["m.pre"]) == (1, 1)
    assert (open_still["m"], open_still["m.pre"]) == (None, 1)
    for metric, columns in ((RATIO, ("m", "m.per")), (WAIT, ("m", "m.event"))):
        row = numbers_of(metric, events, until=START + days(6))
        assert [row[name] for name in columns] == [None, None]


def test_conversion_is_whether_count_how_often_and_value_how_much() -> None:
    events = [*bought(START, START + days(2)), *bought(START + days(1), action="view")]
    assert numbers_of(CONVERSION, events)["m"] == 1
    assert numbers_of(COUNT, events)["m"] == 2
    assert numbers_of(VALUE, events)["m"] == 4
    before = bought(START - days(1), START - days(2))
    assert [numbers_of(kind, before)["m.pre"] for kind in (CONVERSION, COUNT, VALUE)] == [1, 2, 4]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_value_that_is_no_number_counts_as_nothing(missing: float | None) -> None:
    assert numbers_of(VALUE, [*bought(START, value=missing), *bought(START, value=3.0)])["m"] == 3
    assert numbers_of(COUNT, bought(START, value=missing))["m"] == 1


def test_nothing_is_capped_here() -> None:
    assert numbers_of(VALUE | {"cap": 0.9}, bought(START, value=1e9))["m"] == 1e9


def test_a_ratio_keeps_its_denominator_even_where_it_is_nothing() -> None:
    events = [*bought(START, START, action="view"), *bought(START, action="click")]
    row = numbers_of(RATIO, [*events, *bought(START - days(1), action="view")])
    assert (row["m"], row["m.per"], row["m.pre"], row["m.pre.per"]) == (1, 2, 0, 1)
    row = numbers_of(RATIO, bought(START, action="click"))
    assert (row["m"], row["m.per"]) == (1, 0)


def test_retention_asks_of_one_day_and_its_pre_period_of_the_share_of_days() -> None:
    for moment, is_there in ((days(1) - TICK, 0), (days(1), 1), (days(2) - TICK, 1), (days(2), 0)):
        assert numbers_of(DAY_ONE, bought(START + moment))["m"] == is_there
    assert numbers_of(DAY_ONE | {"action": "view"}, bought(START + days(1)))["m"] == 0
    before = bought(START - TICK, START - days(1), START - days(1) - TICK, START - days(5))  # days 0, 0, 1 and 4 back
    assert numbers_of(DAY_ONE, before)["m.pre"] == pytest.approx(3 / 7)
    whole_day = bought(START - days(1), START - TICK)
    assert numbers_of(DAY_ONE, whole_day)["m.pre"] == pytest.approx(1 / 7)
    assert numbers_of(DAY_ONE, whole_day, pre_days=0.5)["m.pre"] == 1
    assert numbers_of(DAY_ONE, [], until=START + days(2))["m"] == 0
    assert numbers_of(DAY_ONE, [], until=START + days(2) - TICK)["m"] is None


def test_time_to_event_is_that_of_the_first_and_censored_at_the_end_of_the_window() -> None:
    assert numbers_of(WAIT, bought(START + days(3), START + days(1.5))) == {
        "user_id": "u", "arm": "b", "exposed_at": START, "m": 1.5, "m.event": True,
    }  # fmt: skip
    row = numbers_of(WAIT, bought(START + days(7), START - days(1)))
    assert (row["m"], row["m.event"]) == (7, False)
    row = numbers_of(WAIT, bought(START))
    assert (row["m"], row["m.event"]) == (0, True)


def test_only_events_of_the_surface_count_where_one_is_named() -> None:
    events: list[Event] = [("u", START, "buy", surface, 1.0) for surface in ("home", "search", None)]
    assert numbers_of(COUNT | {"surface": "home"}, events)["m"] == 1
    assert numbers_of(COUNT, events)["m"] == 3
    assert numbers_of(DAY_ONE | {"surface": "none"}, bought(START + days(1)))["m"] == 0


def test_a_user_without_events_has_zeros_and_no_other_user_adds_to_them() -> None:
    experiment = experiment_of({"name": "m", **COUNT}, {"name": "w", **WAIT})
    exposed = exposed_of({"none": START, "u": START}).with_columns(lifecycle=pl.lit("new"), segment=pl.lit("none"))
    users = user_numbers(experiment, exposed, frame_of([*bought(START), *bought(START, user="other")]), until=LATE)
    assert users["user_id"].to_list() == ["none", "u"]
    assert users.row(0) == ("none", "b", START, 0.0, 0.0, 7.0, False, "new", "none")
    assert users.columns == ["user_id", "arm", "exposed_at", "m", "m.pre", "w", "w.event", "lifecycle", "segment"]
    empty = user_numbers(experiment, exposed, frame_of([]), until=LATE)
    assert empty["m"].to_list() == [0, 0]
    assert empty.schema == users.schema


def test_without_a_pre_period_there_are_no_such_columns() -> None:
    assert set(numbers_of(RATIO, [], pre_days=0)) == {"user_id", "arm", "exposed_at", "m", "m.per"}


def test_a_user_who_is_exposed_twice_is_a_mistake_of_the_caller() -> None:
    experiment, exposed = experiment_of({"name": "m", **COUNT}), exposed_of({"u": START})
    with pytest.raises(ValueError, match="exposed twice"):
        user_numbers(experiment, pl.concat([exposed, exposed]), frame_of([]), until=LATE)


def test_mature_users_are_counted_by_metric() -> None:
    experiment = experiment_of({"name": "week", **COUNT}, {"name": "day", **COUNT, "within_days": 1})
    users = user_numbers(
        experiment, exposed_of({"u": START, "v": START + days(1)}), frame_of([]), until=START + days(7)
    )
    assert num_mature(experiment, users) == {"week": 1, "day": 2}


def test_a_name_that_the_log_does_not_have_is_told_with_those_it_has() -> None:
    experiment = experiment_of({"name": "m", **RATIO, "surface": "home"})
    check_names(experiment, actions=["click", "view"], surfaces=["home"])
    with pytest.raises(ConfigurationError, match=r"action 'view', which is not in .* one of buy, click"):
        check_names(experiment, actions=["click", "buy"], surfaces=["home"])
    with pytest.raises(ConfigurationError, match=r"surface 'home'.*no surface: the log has none"):
        check_names(experiment, actions=["click", "view"], surfaces=[])


# -- against the readable reference ------------------------------------------------------------------------------------


def _hits(metric: MetricSpec, action: str | None, log: Sequence[Event], start: datetime, end: datetime) -> list[Event]:
    """Events of a metric in [start, end)."""
    return [
        event
        for event in log
        if start <= event[1] < end
        and (action is None or event[2] == action)
        and (metric.surface is None or event[3] == metric.surface)
    ]


def _number(metric: MetricSpec, hits: Sequence[Event]) -> float:
    if metric.kind == "value":
        return sum(value for *_, value in hits if value is not None and math.isfinite(value))
    return float(bool(hits) if metric.kind in ("conversion", "retention") else len(hits))


def _before(metric: MetricSpec, action: str | None, log: Sequence[Event], exposed_at: datetime, pre: float) -> float:
    """The same number over the pre-period; of a retention its mean over the days of that."""
    start = exposed_at - days(pre)
    if metric.kind != "retention":
        return _number(metric, _hits(metric, action, log, start, exposed_at))
    edges = [max(start, exposed_at - days(back)) for back in range(math.ceil(pre) + 1)]
    there = [_number(metric, _hits(metric, action, log, old, new)) for new, old in pairwise(edges)]
    return sum(there) / len(there)


def reference_row(
    experiment: Experiment, user: str, exposed_at: datetime, log: Sequence[Event], until: datetime
) -> dict[str, Any]:
    events, row = [event for event in log if event[0] == user and event[1] < until], dict[str, Any]()
    for metric in experiment.metrics:
        start, end = exposed_at + days(metric.day or 0), exposed_at + days(metric.window_days)
        hits = _hits(metric, metric.action, events, start, end)
        found = {metric.name: _number(metric, hits)}
        if metric.kind == "time_to_event":
            wait = (min(event[1] for event in hits) - exposed_at) / days(1) if hits else metric.window_days
            found = {metric.name: wait, f"{metric.name}.event": bool(hits)}
        actions = {"": metric.action}
        if metric.kind == "ratio":
            actions[".per"] = metric.per
            found[f"{metric.name}.per"] = _number(metric, _hits(metric, metric.per, events, start, end))
        row |= found if end <= until else dict.fromkeys(found)
        if experiment.pre_days and metric.kind != "time_to_event":
            for part, action in actions.items():
                row[f"{metric.name}.pre{part}"] = _before(metric, action, events, exposed_at, experiment.pre_days)
    return row


ALL_KINDS = (
    {"name": "conv", **CONVERSION, "within_days": 2},
    {"name": "num", **COUNT, "within_days": 3.5, "surface": "home"},
    {"name": "sum", **VALUE, "within_days": 1.25},
    {"name": "per", **RATIO, "within_days": 3},
    {"name": "back", **DAY_ONE},
    {"name": "again", **DAY_ONE, "day": 2, "action": "view"},
    {"name": "wait", **WAIT, "within_days": 2.5, "surface": "home"},
)
# A coarse clock puts many events exactly on the borders.
MOMENTS = st.integers(-16, 20).map(lambda quarters: START + timedelta(hours=6 * quarters))
EVENTS = st.tuples(
    st.sampled_from(["u", "v", "w", "stranger"]),
    MOMENTS,
    st.sampled_from(["buy", "view", "click"]),
    st.sampled_from(["home", "search", None]),
    st.sampled_from([None, math.nan, 0.5, 2.0, -1.0]),
)
EXPOSED = st.fixed_dictionaries({"u": MOMENTS, "v": MOMENTS, "w": MOMENTS})


@settings(max_examples=150)
@given(log=st.lists(EVENTS, max_size=40), users=EXPOSED, until=MOMENTS, pre_days=st.sampled_from([0, 1, 2.5, 7]))
def test_the_fast_path_is_the_readable_one(
    log: list[Event], users: dict[str, datetime], until: datetime, pre_days: float
) -> None:
    experiment = experiment_of(*ALL_KINDS, pre_days=pre_days)
    found = user_numbers(experiment, exposed_of(users), frame_of(log), until=until)
    for row, (user, exposed_at) in zip(found.iter_rows(named=True), users.items(), strict=True):
        expected = reference_row(experiment, user, exposed_at, log, until)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert set(row) == {"user_id", "arm", "exposed_at", *expected}


@settings(max_examples=100)
@given(log=st.lists(EVENTS, max_size=30), more=st.lists(EVENTS, max_size=15), users=EXPOSED, until=MOMENTS)
def test_what_happens_at_until_or_before_the_pre_period_changes_nothing(
    log: list[Event], more: list[Event], users: dict[str, datetime], until: datetime
) -> None:
    experiment, exposed = experiment_of(*ALL_KINDS, pre_days=2), exposed_of(users)
    later: list[Event] = [(user, max(when, until), a, s, v) for user, when, a, s, v in more]
    first = {user: moment - days(2) for user, moment in users.items()}
    earlier: list[Event] = [
        (user, min(moment, first.get(user, moment) - TICK), a, s, v) for user, moment, a, s, v in more
    ]
    seen = user_numbers(experiment, exposed, frame_of(log), until=until)
    assert_frame_equal(seen, user_numbers(experiment, exposed, frame_of([*log, *later, *earlier]), until=until))
