"""Differences as pictures: the colour says what the interval allows to say, and nothing from data is markup."""

import xml.etree.ElementTree as ET

import pytest

from sonder.evaluation.effect_charts import IntervalRow, TimePoint, effect_over_time_chart, interval_chart, signed


@pytest.mark.parametrize(
    ("low", "high", "is_up_better", "css"),
    [
        (0.01, 0.03, True, "better"),
        (0.01, 0.03, False, "worse"),
        (-0.03, -0.01, True, "worse"),
        (-0.03, -0.01, False, "better"),
        (-0.01, 0.03, True, "even"),
        (0.01, 0.03, None, "even"),
    ],
)
def test_the_colour_is_of_the_whole_interval(low: float, high: float, is_up_better: bool | None, css: str) -> None:
    row = IntervalRow("buyers", (low + high) / 2, low, high, "told", is_up_better)
    drawing = ET.fromstring(interval_chart([row], "effects", limit=0.02))
    assert [group.get("class") for group in drawing.iter("g")] == [css]


def test_rows_lie_in_the_picture_and_zero_in_the_middle() -> None:
    rows = [
        IntervalRow(f"<{name}>", value, value - 0.1, value + 0.1, "t")
        for name, value in zip("ab", (-3, 2), strict=True)
    ]
    drawing = ET.fromstring(interval_chart(rows, "effects"))
    places = [float(circle.get("cx", "nan")) for circle in drawing.iter("circle")]
    assert 190 <= places[0] < 415 < places[1] <= 640
    assert [text.text for text in drawing.iter("text")][:2] == ["<a>", "<b>"]


def test_early_bounds_are_cut_and_the_numbers_are_told() -> None:
    points = [TimePoint("day 1", 0.5, -9.0, 9.0), TimePoint("day 2", 0.02, 0.01, 0.03)]
    drawing = ET.fromstring(effect_over_time_chart(points, "effect", limit=0.02))
    polygon = next(drawing.iter("polygon")).get("points", "")
    heights = [float(pair.split(",")[1]) for pair in polygon.split()]
    assert min(heights) >= 10
    assert max(heights) <= 200
    assert "day 2: +2.0 %, from +1.0 % to +3.0 %" in [title.text for title in drawing.iter("title")]


def test_a_difference_is_told_with_its_sign() -> None:
    assert [signed(value) for value in (0.0, 0.0012, -0.034, 2.5)] == ["0 %", "+0.12 %", "-3.4 %", "+250 %"]
