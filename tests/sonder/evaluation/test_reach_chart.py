"""The drawing of a reach curve: in its frame, readable, and able to draw a single point."""

from __future__ import annotations

import re

from sonder.evaluation.reach_chart import ReachRow, reach_chart


def row(size: int, similarity: float, precision: float = 0.25, at_most: float = 0.5) -> ReachRow:
    return ReachRow(size, similarity, 0.1, 0.5, 0.1, 2.0, precision, 0.1, at_most)


def points_of(chart: str, css: str) -> list[tuple[float, float]]:
    found = re.search(rf'class="{css}" points="([^"]+)"', chart)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_sizes_are_equally_far_apart_when_each_is_ten_times_the_last() -> None:
    points = points_of(reach_chart([row(10, 1.0), row(100, 0.5), row(1_000, 0.0)]), "like")
    assert points == [(36.0, 20.0), (276.0, 105.0), (516.0, 190.0)]


def test_the_band_goes_along_the_least_precision_and_back_along_the_most() -> None:
    chart = reach_chart([row(10, 0.9), row(1_000, 0.1)])
    assert points_of(chart, "band") == [(36.0, 147.5), (516.0, 147.5), (516.0, 105.0), (36.0, 105.0)]


def test_a_size_that_would_touch_its_neighbour_is_not_written() -> None:
    chart = reach_chart([row(1_000, 0.9), row(1_010, 0.8), row(100_000, 0.1)])
    assert [size for size in ("1,000", "1,010", "100,000") if f">{size}</text>" in chart] == ["1,000", "100,000"]


def test_one_size_alone_is_drawn() -> None:
    assert points_of(reach_chart([row(1, 0.5)]), "like") == [(36.0, 105.0)]
