"""A score's part of the report: its numbers with intervals, its drawings, what moves it; from judged JSON to a view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from sonder.evaluation.backtest import BacktestPoint
from sonder.evaluation.ranked_rows import LiftPoint
from sonder.evaluation.report_content import ScoreFacts
from sonder.evaluation.score_charts import (
    DriverBar,
    backtest_chart,
    drivers_chart,
    lift_chart,
    reliability_band_chart,
    slices_chart,
)
from sonder.evaluation.score_slices import ScoreSlice

AMOUNTS = ("value", "count")  # kinds that are no probability


def score_view(facts: ScoreFacts) -> dict[str, Any]:
    """What the template shows of one task: (title, drawing) pairs and sentences, none for a refused task."""
    judged = facts.judged
    is_amount = judged is not None and judged["kind"] in AMOUNTS
    promise = facts.promise.capitalize() if is_amount else f"The chance that a user {facts.promise}"
    if judged is None:
        return {"facts": facts, "promise": promise, "charts": [], "sentences": [], "protocol": ""}
    return {
        "facts": facts,
        "promise": promise,
        "charts": list(_charts(facts.name, judged)),
        "sentences": judged["sentences"],
        "protocol": judged["protocol"],
    }


def _charts(name: str, judged: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    is_share = judged["kind"] not in AMOUNTS
    slices = {by: [ScoreSlice(**entry) for entry in group] for by, group in judged["slices"].items()}
    charts: list[tuple[str, Markup]] = []
    if slices.get("score"):
        levels = reliability_band_chart(slices["score"], name, is_share=is_share)
        charts.append(("Promised against what came true, by level of the score", levels))
    if judged["quality"].get("lift_curve"):
        points = [LiftPoint(**point) for point in judged["quality"]["lift_curve"]]
        charts.append(("Lift: what the best-scored users hold", lift_chart(points, name)))
    for by, title in (("lifecycle", "By lifecycle at the cutoff"), ("tenure", "By days since the first event")):
        if slices.get(by):
            charts.append((title, slices_chart(slices[by], name, is_share=is_share)))
    if judged["backtest"] is not None and judged["backtest"]["points"]:
        points_ = [BacktestPoint(**point) for point in judged["backtest"]["points"]]
        charts.append(("An older model, asked as it ages", backtest_chart(points_, name)))
    if judged["drivers"]:
        bars = [DriverBar(**driver) for driver in judged["drivers"]]
        charts.append(("What moves the score: mean absolute contribution", drivers_chart(bars, name)))
    return charts
