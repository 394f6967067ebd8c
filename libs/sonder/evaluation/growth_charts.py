"""The growth part of the report: states over time, who came and left, the cohort triangle, the forecast.

`growth_view` turns a lifecycle overview into what templates/growth.html shows; charts are inline SVG as in
evaluation.charts, tables carry their shade as a number in [0, 1]. Colours are those of the mix above, by state.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.cohorts import Cohorts
from sonder.segments.forecast import HORIZON_DAYS, NAIVE, MixForecast
from sonder.segments.growth import Period, days_of
from sonder.segments.lifecycle import STATES
from sonder.segments.overview import LifecycleOverview, iso_day

NUM_COHORTS = 13  # the newest
NUM_PERIODS = 13


def growth_view(overview: LifecycleOverview, order: Sequence[str]) -> dict[str, Any]:
    """What the template shows; `order` names the states by colour."""
    states = [(place, state) for place, state in enumerate(order) if state in STATES[1:]]
    periods, forecast = overview.periods, overview.forecast
    return {
        "states": [{"name": state, "css": f"c{place}", "colour": place} for place, state in states],
        "area": _area(overview, states) if len(overview.moments_us) > 1 else None,
        "highest": int(overview.tally.counts_MS.sum(axis=1).max()),
        "first": iso_day(overview.moments_us[0]),
        "last": iso_day(overview.moments_us[-1]),
        "days": days_of(periods),
        "bars": _bars(periods, order) if periods else None,
        "first_period": iso_day(periods[0].end_us) if periods else "",
        "periods": [_period(period) for period in periods[-NUM_PERIODS:]],
        "has_unsettled": not all(period.is_settled for period in periods),
        "settled_from": iso_day(overview.settled_from_us),
        "transitions": _transitions(overview),
        "cohorts": _cohorts(overview.cohorts),
        "forecast": None if forecast is None else _forecast(overview, forecast, states),
        "missing": overview.missing,
    }


def forecast_sentence(forecast: MixForecast) -> str:
    """The error of the forecast and of the naive one, and how far to trust them."""
    if forecast.backtest is None or forecast.mae is None or forecast.naive_mae is None:
        return f"Not tested: {forecast.reason}."
    num = len(forecast.backtest.origins)
    own, naive = f"{100 * forecast.mae:.2f} points", f"{100 * forecast.naive_mae:.2f}"
    told = (
        f"Backtest: made at {num} past weeks and compared with the mix {HORIZON_DAYS} days later (windows overlap),"
        f" mean absolute error per state {own} by transitions, {naive} by the naive forecast that nothing changes."
    )
    if forecast.coverage is not None:
        told += f" The interval is to hold in {100 * forecast.coverage:.0f} % of such months, for each state by itself."
    return told if forecast.reason is None else f"{told} Here {forecast.reason}."


def _area(overview: LifecycleOverview, states: Sequence[tuple[int, str]]) -> Markup:
    """Users by state at each weekly moment, one area on the other."""
    counts_MS = overview.tally.counts_MS[:, [STATES.index(state) for _, state in states]]
    highest = max(1, int(counts_MS.sum(axis=1).max()))
    edges = np.concatenate((np.zeros((len(counts_MS), 1)), np.cumsum(counts_MS, axis=1)), axis=1)
    heights = (100 - 100 * edges / highest).astype(np.float64)
    areas = Markup("").join(
        Markup('<path class="{css}" d="M{there}L{back}Z"><title>{name}</title></path>').format(
            css=f"c{place}",
            there=_points(range(len(heights)), heights[:, layer + 1]),
            back=_points(range(len(heights) - 1, -1, -1), heights[::-1, layer]),
            name=state,
        )
        for layer, (place, state) in enumerate(states)
    )
    return Markup(
        '<svg class="area" viewBox="0 0 {width} 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        "{areas}</svg>"
    ).format(width=len(heights) - 1, label=f"Users by state over time, at most {highest:,}", areas=areas)


def _points(xs: Sequence[int] | range, ys: NDArray[np.float64]) -> str:
    return "L".join(f"{x} {y:.2f}" for x, y in zip(xs, ys.tolist(), strict=True))


def _bars(periods: Sequence[Period], order: Sequence[str]) -> Markup:
    """Gained users upwards, lost ones downwards, the net as a line across each bar."""
    up = max(period.new + period.resurrected for period in periods)
    down = max(period.churned for period in periods)
    scale = 100 / max(1, up + down)
    zero = up * scale
    css = {state: f"c{order.index(state)}" for state in ("new", "resurrected", "dormant")}
    drawn = []
    for place, period in enumerate(periods):
        levels = (0, period.new, period.new + period.resurrected)
        parts = [
            (css[state], zero - scale * top, scale * (top - bottom))
            for state, (bottom, top) in zip(("new", "resurrected"), pairwise(levels), strict=True)
        ]
        parts.append((css["dormant"], zero, scale * period.churned))
        told = (
            f"until {iso_day(period.end_us)}: {period.new:,} new, {period.resurrected:,} resurrected,"
            f" {period.churned:,} churned, net {period.net:+,}"
        )
        rects = Markup("").join(
            Markup('<rect class="{css}" x="{x}" y="{y}" width="0.8" height="{h}"/>').format(
                css=name, x=f"{place + 0.1:.1f}", y=f"{y:.2f}", h=f"{h:.2f}"
            )
            for name, y, h in parts
        )
        net = Markup('<path class="net" d="M{x} {y}h0.96"/>').format(
            x=f"{place + 0.02:.2f}", y=f"{zero - scale * period.net:.2f}"
        )
        unsettled = Markup("") if period.is_settled else Markup(' class="unsettled"')
        drawn.append(Markup("<g{u}><title>{t}</title>{r}{n}</g>").format(u=unsettled, t=told, r=rects, n=net))
    return Markup(
        '<svg class="flows" viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img" aria-label="Growth per period">'
        '{groups}<path class="zero" d="M0 {zero}H{n}"/></svg>'
    ).format(n=len(periods), groups=Markup("").join(drawn), zero=f"{zero:.2f}")


def _period(period: Period) -> dict[str, Any]:
    return {
        "until": iso_day(period.end_us),
        "new": period.new,
        "resurrected": period.resurrected,
        "churned": period.churned,
        "net": f"{period.net:+,}",
        "active": period.active,
        "quick_ratio": period.quick_ratio,
        "is_settled": period.is_settled,
    }


def _transitions(overview: LifecycleOverview) -> dict[str, Any] | None:
    flows_SS = overview.transitions_SS
    if flows_SS is None:
        return None
    rows = []
    for place, state in enumerate(STATES):
        users = int(flows_SS[place].sum())
        shares = [flow / users if users else 0.0 for flow in flows_SS[place, 1:].tolist()]
        rows.append({"name": "not seen before" if place == 0 else state, "users": users, "shares": shares})
    last = overview.periods[-1]
    return {"rows": rows, "columns": STATES[1:], "from": iso_day(last.start_us), "to": iso_day(last.end_us)}


def _cohorts(cohorts: Cohorts) -> dict[str, Any]:
    shares_CK, is_finished_CK, num = cohorts.shares_CK, cohorts.is_finished_CK, len(cohorts.starts_us)
    width = min(num, NUM_COHORTS)
    later = np.where(is_finished_CK, shares_CK, np.nan)[num - width :, 1:width]
    highest = float(np.nanmax(later)) if np.isfinite(later).any() else 1.0
    means = cohorts.means_K[1:width].tolist()
    rows = []
    for row in range(num - width, num):
        cells = [
            {
                "share": float(shares_CK[row, k]) if np.isfinite(shares_CK[row, k]) else None,
                "is_finished": bool(is_finished_CK[row, k]),
                "shade": float(np.nan_to_num(shares_CK[row, k])) / (highest or 1.0),
            }
            for k in range(1, width)
        ]
        name = iso_day(cohorts.starts_us[row])
        rows.append(
            {"name": name if cohorts.unit == "week" else name[:7], "is_censored": row == 0, "cells": cells}
            | {"users": int(cohorts.sizes_C[row])}
        )
    return {
        "unit": cohorts.unit,
        "rows": rows,
        "width": width,
        "left_out": num - width,
        "means": [None if not np.isfinite(mean) else mean for mean in means],
        "is_last_finished": cohorts.is_last_finished,
    }


def _forecast(overview: LifecycleOverview, forecast: MixForecast, states: Sequence[tuple[int, str]]) -> dict[str, Any]:
    now_S = overview.tally.counts_MS[-1] / max(1, overview.tally.counts_MS[-1].sum())
    highs = forecast.shares_S if forecast.high_S is None else forecast.high_S
    longest = float(max(highs.max(), now_S.max())) or 1.0
    rows = []
    for colour, state in states:
        place = STATES.index(state)
        low, high = (None if bound is None else float(bound[place]) for bound in (forecast.low_S, forecast.high_S))
        tested = forecast.backtest
        rows.append(
            {
                "name": state,
                "colour": colour,
                "now": float(now_S[place]),
                "share": float(forecast.shares_S[place]),
                "users": round(float(forecast.users_S[place])),
                "low": low,
                "high": high,
                "error": None if tested is None else float(tested.transitions_OS[:, place].mean()),
                "naive_error": None if tested is None else float(tested.naive_OS[:, place].mean()),
            }
        )
    return {
        "until": iso_day(overview.as_of_us + HORIZON_DAYS * MICROSECONDS_PER_DAY),
        "days": HORIZON_DAYS,
        "method": "the naive forecast" if forecast.method == NAIVE else "recent transitions",
        "rows": rows,
        "longest": longest,
        "sentence": forecast_sentence(forecast),
    }
