from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from sonder.evaluation.backtest import BacktestPoint
from sonder.evaluation.ranked_rows import lift_curve
from sonder.evaluation.score_charts import (
    DriverBar,
    backtest_chart,
    drivers_chart,
    lift_chart,
    reliability_band_chart,
    slices_chart,
)
from sonder.evaluation.score_slices import ScoreSlice
from sonder.history.timelines import MICROSECONDS_PER_DAY

NEW = ScoreSlice("new", 400, 40, 0.2, 0.1, 0.07, 0.13, False, 0.1, 0.02)
CORE = ScoreSlice("core", 900, 300, 0.32, 0.33, 0.3, 0.37, True, 0.02, 0.02)
TINY = ScoreSlice("<b>tiny", 9, 1, 0.3, 0.1, 0.02, 0.4, None, None, None)


def point(day: int, ratio: float | None) -> BacktestPoint:
    interval = None if ratio is None else (ratio - 0.1, ratio + 0.1)
    return BacktestPoint(
        day * MICROSECONDS_PER_DAY, day - 19_990.0, 500, 60, 0.12, 0.12, 0.78, 0.4, None, 0.02, 0.02, ratio, interval
    )


POINTS = [point(20_000, 1.02), point(20_007, 1.1), point(20_014, 1.3)]


def classes(markup: str) -> set[str]:
    return {name for names in re.findall(r'class="([^"]+)"', markup) for name in names.split()}


def drawn() -> list[str]:
    scores = np.arange(40) / 40
    return [
        str(lift_chart(lift_curve(scores > 0.7, scores), "buy")),
        str(reliability_band_chart([NEW, CORE], "buy")),
        str(reliability_band_chart([replace(NEW, observed_high=1700.0), CORE], "spend", is_share=False)),
        str(slices_chart([NEW, CORE, TINY], "buy")),
        str(backtest_chart(POINTS, "buy")),
        str(backtest_chart([point(20_000, None)], "buy")),
        str(drivers_chart([DriverBar("recency", 0.2, -0.9), DriverBar("buys", 0.4, 0.9), DriverBar("x", 0.1, 0)], "b")),
        str(drivers_chart([], "buy")),
    ]


def test_every_chart_is_well_formed_with_finite_coordinates_and_a_name() -> None:
    for markup in drawn():
        root = ET.fromstring(markup)
        assert root.tag == "svg"
        assert root.attrib["aria-label"]
        assert "nan" not in markup
        assert "inf" not in markup.replace("inf.", "")


def test_every_class_of_a_chart_has_its_style() -> None:
    folder = resources.files("sonder.evaluation").joinpath("templates")
    css = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "scores.css"))
    used = set().union(*(classes(markup) for markup in drawn()))
    assert {name for name in used if f".{name}" not in css} <= {"inside", "drivers"}  # as all the others


def test_a_slice_that_missed_is_marked_and_one_too_small_is_grey() -> None:
    markup = str(slices_chart([NEW, CORE, TINY], "buy"))
    assert [re.search(rf'<g class="(\w+)"><title>{name}', markup)[1] for name in ("new", "core")] == [  # type: ignore[index]
        "outside",
        "inside",
    ]
    assert "&lt;b&gt;tiny: predicted 30%, came 10% (2% to 40%), 9 users, too few to judge" in markup
    assert "<b>" not in markup


def test_the_lift_curve_of_a_perfect_order_rises_to_the_top_at_once() -> None:
    scores = np.arange(20) / 20
    markup = str(lift_chart(lift_curve(scores >= 0.9, scores), "buy"))
    assert 'class="curve" points="38.0,222.0 58.0,22.0 78.0,22.0' in markup


def test_the_backtest_draws_the_ratio_with_its_band_around_one() -> None:
    markup = str(backtest_chart(POINTS, "buy"))
    assert "2024-10-04, model 10 days old: predicted / observed 1.020, 500 users" in markup
    assert markup.count('class="band"') == 1
    assert "model 10 days old" in markup
    assert "24 days old" in markup


@pytest.mark.parametrize(("direction", "css"), [(0.9, "raises"), (-0.9, "lowers"), (0.1, "mixed")])
def test_a_driver_tells_its_direction(direction: float, css: str) -> None:
    assert f'<g class="{css}">' in str(drivers_chart([DriverBar("buys", 0.4, direction)], "buy"))


def test_drivers_stand_heaviest_first() -> None:
    markup = str(drivers_chart([DriverBar("recency", 0.2, -0.9), DriverBar("buys", 0.4, 0.9)], "buy"))
    assert markup.index("buys") < markup.index("recency")
    assert 'width="262.0"' in markup  # half as long
