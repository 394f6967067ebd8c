"""What `sonder lifecycle` shows: the mix at a day, growth, transitions, cohorts and the forecast, with `rich`.

Reads results, computes nothing. Every table names its moment, its periods and, of a forecast, its error.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from pipelines.lifecycle import Asked, UserLifecycle
from pipelines.terminal import console
from sonder.evaluation.growth_charts import forecast_sentence
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.cohorts import Cohorts
from sonder.segments.forecast import HORIZON_DAYS, NAIVE, MixForecast
from sonder.segments.growth import Period, days_of
from sonder.segments.lifecycle import STATES
from sonder.segments.overview import LifecycleOverview, iso_day
from sonder.segments.thresholds import LifecycleThresholds

NUM_PERIODS = 13
NUM_COHORTS = 13
NARROW = (1, 2, 3, 4, 6, 8, 12)  # the columns of cohorts where not all of them fit
COHORT_NAME_CELLS, COHORT_CELLS = 30, 7  # of the terminal's width


def show_overview(overview: LifecycleOverview, asked: Asked) -> None:
    """The whole page of a moment."""
    console.print(
        f"[bold]Lifecycle as of {_minute(asked.as_of_us)}[/bold] · events before it · {_rules(asked.thresholds)}"
        f" · definitions of release {escape(asked.release_id)}",
        soft_wrap=True,
    )
    _show_mix(overview.mix)
    if overview.periods:
        _show_periods(overview.periods)
        _show_transitions(overview)
    _show_cohorts(overview.cohorts)
    if overview.forecast is not None:
        _show_forecast(overview, overview.forecast)
    for name, reason in overview.missing.items():
        console.print(f"{name.capitalize()}: not measured, {reason}.", soft_wrap=True)


def show_user(user: UserLifecycle, asked: Asked) -> None:
    """One user at a moment: the state, what it was decided from, the states before."""
    row = user.evidence
    console.print(
        f"[bold]User {escape(user.user_id)}[/bold] as of {_minute(asked.as_of_us)}:"
        f" [bold]{row['lifecycle']}[/bold] · {_rules(asked.thresholds)}",
        soft_wrap=True,
    )
    facts = (
        ("in this state since", _time(row["since"])),
        ("first event", _time(row["first_at"])),
        ("last event", _time(row["last_at"])),
        ("days since", "·" if row["days_since_last"] is None else f"{row['days_since_last']:.1f}"),
        (f"active days of the last {asked.thresholds.dormant_days}", str(row["active_days"])),
        ("events", f"{row['num_events']:,}"),
    )
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(name, value)
    console.print(grid)
    table = _table("States before, asked once a day at the same time of day", "state")
    for name in ("first day", "last day", "days"):
        table.add_column(name, justify="right")
    for stay in user.stays:
        days = round((stay.end_us - stay.start_us) / MICROSECONDS_PER_DAY) + 1
        table.add_row(stay.state, iso_day(stay.start_us), iso_day(stay.end_us), str(days))
    console.print(table)


def _show_mix(mix: dict[str, int]) -> None:
    total = sum(mix.values())
    table = _table(f"{total:,} users known", "state")
    for name in ("users", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    for state, users in mix.items():
        share = users / total if total else 0.0
        table.add_row(state, f"{users:,}", f"{100 * share:.1f} %", "█" * round(30 * share))
    console.print(table)


def _show_periods(periods: list[Period]) -> None:
    days = days_of(periods)
    table = _table(f"Growth per {days} days · active: neither cold nor dormant", "until")
    for name in ("new", "resurrected", "churned", "net", "active", "quick ratio"):
        table.add_column(name, justify="right")
    for period in periods[-NUM_PERIODS:]:
        ratio = "·" if period.quick_ratio is None else f"{period.quick_ratio:.2f}"
        cells = (f"+{period.new:,}", f"+{period.resurrected:,}", f"-{period.churned:,}", f"{period.net:+,}")
        marked = iso_day(period.end_us) + ("" if period.is_settled else " *")
        table.add_row(marked, *cells, f"{period.active:,}", ratio)
    console.print(table)
    if not all(period.is_settled for period in periods[-NUM_PERIODS:]):
        console.print("* the log is too young there to tell who had been dormant or there before.", soft_wrap=True)


def _show_transitions(overview: LifecycleOverview) -> None:
    flows, last = overview.transitions_SS, overview.periods[-1]
    assert flows is not None
    title = f"Transitions from {iso_day(last.start_us)} (rows) to {iso_day(last.end_us)} (columns) · % of the row"
    table = _table(title, "from")
    for state in STATES[1:]:
        table.add_column(state, justify="right", no_wrap=True)
    table.padding = (0, 0)  # else seven states do not fit into 80 columns
    table.add_column("users", justify="right")
    for place, state in enumerate(STATES):
        users = int(flows[place].sum())
        shares = [f"{100 * flow / users:.0f}" if users and flow else "·" for flow in flows[place, 1:]]
        table.add_row("not seen before" if place == 0 else state, *shares, f"{users:,}")
    console.print(table)


def _show_cohorts(cohorts: Cohorts) -> None:
    shares, is_finished, begun = cohorts.shares_CK, cohorts.is_finished_CK, cohorts.is_begun_CK
    num = len(cohorts.starts_us)
    width = min(num, NUM_COHORTS)
    table = _table(f"Cohorts · % of the users first seen in a {cohorts.unit} active so many {cohorts.unit}s later", "")
    table.add_column("users", justify="right", no_wrap=True)
    laters = _laters(width)
    for later in laters:
        table.add_column(str(later), justify="right", no_wrap=True)
    for row in range(max(0, num - width), num):
        cells = [
            f"{100 * shares[row, k]:.0f}{'' if is_finished[row, k] else '…'}"
            if begun[row, k] and math.isfinite(shares[row, k])
            else ""
            for k in laters
        ]
        name = iso_day(cohorts.starts_us[row]) + (" †" if row == 0 else "")
        table.add_row(name, f"{cohorts.sizes_C[row]:,}", *cells)
    means = ["" if not math.isfinite(mean) else f"{100 * mean:.0f}" for mean in cohorts.means_K[laters]]
    table.add_row("mean, finished", "", *means)
    console.print(table)
    notes = [] if cohorts.is_last_finished else [f"… so far: that {cohorts.unit} has not ended; no mean reads it."]
    if num - width <= 0:
        notes.append("† holds everybody who was there before the log began.")
    if notes:
        console.print(" ".join(notes), soft_wrap=True)


def _laters(width: int) -> list[int]:
    """Periods later that the terminal has room for."""
    room = max((console.width - COHORT_NAME_CELLS) // COHORT_CELLS, 1)
    every = list(range(1, width))
    return every if len(every) <= room else [later for later in NARROW if later < width][:room]


def _show_forecast(overview: LifecycleOverview, forecast: MixForecast) -> None:
    until = overview.as_of_us + HORIZON_DAYS * MICROSECONDS_PER_DAY
    table = _table(f"Forecast for {iso_day(until)}, {HORIZON_DAYS} days on · by {_method(forecast)}", "state")
    for name in ("now", "forecast", "interval", "users"):
        table.add_column(name, justify="right")
    total = sum(overview.mix.values())
    for place, state in enumerate(STATES[1:], start=1):
        interval = "·"
        if forecast.low_S is not None and forecast.high_S is not None:
            interval = f"{100 * forecast.low_S[place]:.1f} to {100 * forecast.high_S[place]:.1f} %"
        now = f"{100 * overview.mix[state] / total:.1f} %"
        shares = f"{100 * forecast.shares_S[place]:.1f} %"
        table.add_row(state, now, shares, interval, f"{forecast.users_S[place]:,.0f}")
    console.print(table)
    console.print(forecast_sentence(forecast), soft_wrap=True)


def _method(forecast: MixForecast) -> str:
    return "the naive forecast" if forecast.method == NAIVE else "recent transitions"


def _rules(thresholds: LifecycleThresholds) -> str:
    return f"new {thresholds.new_days} days, dormant after {thresholds.dormant_days}"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


def _minute(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1_000_000, tz=UTC):%Y-%m-%d %H:%M}"


def _time(time: datetime | None) -> str:
    return "·" if time is None else f"{time:%Y-%m-%d %H:%M}"
