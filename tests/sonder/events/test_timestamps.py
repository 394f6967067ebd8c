"""Every form of a time comes out as the microsecond it names."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import ConfigurationError
from sonder.events.timestamp_forms import detect
from sonder.events.timestamps import EARLIEST_US, in_range, parse

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31)).map(lambda naive: naive.replace(tzinfo=UTC))


def us_of(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def parsed(values: list[object], form: str) -> list[int | None]:
    times = parse(pa.array(values), form)
    return [int(us) if is_time else None for us, is_time in zip(times.us, times.is_time, strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    moments,
    st.sampled_from(["T", " "]),
    st.sampled_from(["", "Z", " UTC", "GMT", "+00:00", "+05:30", "-0800", "+02"]),
    st.sampled_from(["auto", "seconds", "milliseconds"]),
)
def test_iso_text_with_any_zone_and_precision_round_trips(
    moment: datetime, separator: str, zone: str, precision: str
) -> None:
    offset = {"+05:30": 330, "-0800": -480, "+02": 120}.get(zone, 0)
    local = moment.astimezone(timezone(timedelta(minutes=offset))).replace(tzinfo=None)
    text = local.isoformat(separator, precision)
    kept = {"seconds": 1_000_000, "milliseconds": 1_000}.get(precision, 1)
    assert parsed([text + zone], "iso") == [us_of(moment) // kept * kept]


@settings(max_examples=100, deadline=None)
@given(st.lists(moments, min_size=1, max_size=20))
def test_epochs_of_every_unit_round_trip_as_integers_and_as_text(instants: list[datetime]) -> None:
    for unit, per_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        exact = [us_of(instant) * per_second // 1_000_000 for instant in instants]
        expected = [number * 1_000_000 // per_second for number in exact]
        assert parsed(list(exact), f"epoch_{unit}") == expected
        assert parsed([str(number) for number in exact], f"epoch_{unit}") == expected


@settings(max_examples=100, deadline=None)
@given(moments)
def test_float_seconds_keep_their_microseconds(moment: datetime) -> None:
    assert parsed([us_of(moment) / 1e6], "epoch_s") == [us_of(moment)]


@settings(max_examples=60, deadline=None)
@given(moments, st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC", "Europe/Berlin"]))
def test_native_timestamps_are_the_same_instant_in_any_unit_and_zone(
    moment: datetime, unit: str, zone: str | None
) -> None:
    whole = moment.replace(microsecond=0)
    native = pa.array([whole.replace(tzinfo=None)], pa.timestamp(unit)).cast(pa.timestamp(unit, tz=zone))
    times = parse(native, "auto")
    assert times.us.tolist() == [us_of(whole)]


def test_dates_are_midnight_in_utc() -> None:
    midnight = us_of(datetime(2011, 3, 1, tzinfo=UTC))
    assert parse(pa.array([date(2011, 3, 1)]), "auto").us.tolist() == [midnight]
    assert parse(pa.array([date(2011, 3, 1)], pa.date64()), "auto").us.tolist() == [midnight]
    assert parsed(["2011-03-01"], "iso") == [midnight]


def test_an_ordinal_counts_seconds_from_1990() -> None:
    assert parsed([0, 1, None], "ordinal") == [EARLIEST_US, EARLIEST_US + 1_000_000, None]
    assert parsed(["7"], "ordinal") == [EARLIEST_US + 7_000_000]


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2011-02-29", "2011-13-01", "2011-00-10", "2011-01-01T24:00:00", "2011-01-01T10:61:00",
     "2011-01-01X10:00:00", "2011-1-1", "2011-01-01 10:00:00+99:00", "2011-01-01 10:00:00 PST", "20110101",
     "1299000000", "2011-01-01 10:00:0a", "2011-01-01 10:00:00.", "é011-01-01"],
)  # fmt: skip
def test_text_that_is_no_iso_time_is_none(text: str) -> None:
    assert parsed([text, "2011-01-01"], "iso")[0] is None


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789-:T .+Z/", max_size=34))
def test_whatever_iso_reads_is_what_the_standard_library_reads(text: str) -> None:
    (found,) = parsed([text], "iso")
    try:
        standard = datetime.fromisoformat(text)
    except ValueError:
        return  # ours reads slashes and a space before the zone too
    if found is not None:
        aware = standard if standard.tzinfo else standard.replace(tzinfo=UTC)
        assert found == us_of(aware)


def test_values_of_different_lengths_are_read_in_one_column() -> None:
    texts = ["2011-03-01", None, "2011-03-01 10:20", "x", "2011-03-01T10:20:30.5Z", "2011-03-01T10:20:30.123456789"]
    day = us_of(datetime(2011, 3, 1, tzinfo=UTC))
    clock = day + 37_230_000_000
    assert parsed(texts, "iso") == [day, None, day + 37_200_000_000, None, clock + 500_000, clock + 123_456]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("%m/%d/%Y %H:%M", "12/1/2010 8:26"), ("%d.%m.%Y %H:%M:%S", "01.12.2010 08:26:00"), ("%Y%m%d%H%M", "201012010826"),
     ("%d/%b/%Y:%H:%M:%S %z", "01/Dec/2010:09:26:00 +0100")],
)  # fmt: skip
def test_a_pattern_reads_its_text_and_nothing_else(pattern: str, text: str) -> None:
    assert parsed([text, "nonsense"], pattern) == [us_of(datetime(2010, 12, 1, 8, 26, tzinfo=UTC)), None]


def test_a_log_that_was_not_resolved_is_not_guessed_batch_by_batch() -> None:
    with pytest.raises(ConfigurationError, match="not decided"):
        parse(pa.array(["2011-01-01"]), "auto")


def test_before_1990_and_after_the_latest_moment_is_out_of_range() -> None:
    latest = us_of(datetime(2020, 1, 1, tzinfo=UTC))
    times = parse(pa.array(["1989-12-31T23:59:59", "1990-01-01", "2020-01-01", "2020-01-01T00:00:01"]), "iso")
    assert in_range(times, "iso", latest).tolist() == [False, True, True, False]
    ordinals = parse(pa.array([-1, 0, 2_000_000_000]), "ordinal")
    assert in_range(ordinals, "ordinal", latest).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["2010-12-01 08:26:00"], "iso"),
        (["2019-10-01 00:00:00 UTC"], "iso"),
        ([1_290_000_000], "epoch_s"),
        (["1290000000.5"], "epoch_s"),
        ([1_290_000_000_000], "epoch_ms"),
        ([1_290_000_000_000_000], "epoch_us"),
        ([1_290_000_000_000_000_000], "epoch_ns"),
        ([0, 1, 2, 3], "ordinal"),
        ([19970101, 19980630], "%Y%m%d"),
        (["12/1/2010 8:26", "12/13/2010 8:26"], "%m/%d/%Y %H:%M"),
        (["13.12.2010 08:26"], "%d.%m.%Y %H:%M"),
        (["03/04/2011 10:00", "04/04/2011 11:00", "01/05/2011 01:00"], "%d/%m/%Y %H:%M"),
        (["01 20, 2014"], "%m %d, %Y"),
        (["one", "two"], None),
        ([None], None),
    ],
)
def test_the_form_of_a_log_is_told_from_a_sample(values: list[object], form: str | None) -> None:
    assert detect(pa.array(values)) == form


def test_a_sample_with_some_broken_rows_still_tells_its_form() -> None:
    assert detect(pa.array(["2010-12-01", "broken", "2010-12-02", None, "2010-12-03"])) == "iso"


def test_a_whole_column_of_one_length_is_read_like_single_rows() -> None:
    texts = np.datetime_as_string(np.datetime64("2015-05-05T00:00:00") + np.arange(500) * 7_919).tolist()
    alone = [parsed([text], "iso")[0] for text in texts[::50]]
    assert parsed(list(texts), "iso")[::50] == alone
