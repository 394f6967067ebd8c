"""Differences with their intervals, as inline SVG: a row each, or one over time with bounds that allow early looks.

In the manner of evaluation.charts: pure functions to markup, colours are CSS classes (templates/experiment.css), texts
from data are escaped, marks tell their numbers when pointed at. Zero is a line; an interval wholly on one side of it is
drawn in the colour of better or worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_NAME, _WIDE, _ROW = 190.0, 640.0, 26.0
_LEFT, _TOP, _HIGH = 52.0, 10.0, 190.0


@dataclass(frozen=True)
class IntervalRow:
    """One difference. `is_up_better`: None where no direction is."""

    name: str
    estimate: float
    low: float
    high: float
    told: str  # when pointed at
    is_up_better: bool | None = True

    @property
    def css(self) -> str:
        if self.is_up_better is None or self.low <= 0 <= self.high:
            return "even"
        return "better" if (self.low > 0) == self.is_up_better else "worse"


@dataclass(frozen=True)
class TimePoint:
    """What was known at one moment: the estimate, and the bounds that hold at all moments together."""

    label: str
    estimate: float
    low: float
    high: float


def interval_chart(rows: Sequence[IntervalRow], label: str, *, limit: float | None = None) -> Markup:
    """A row a difference, in percent; `limit` is drawn as a dashed line on both sides."""
    reach = 1.08 * max([1e-9, limit or 0.0, *(max(abs(row.low), abs(row.high)) for row in rows)])
    high = _ROW * len(rows) + 24

    def x(value: float) -> str:
        return f"{_NAME + (_WIDE - _NAME) * (0.5 + 0.5 * max(-1.0, min(1.0, value / reach))):.1f}"

    drawn = Markup("").join(
        Markup(
            '<g class="{css}"><title>{told}</title><text x="0" y="{y}" dy="3.5">{name}</text>'
            '<path d="M{low} {y}H{high}"/><circle cx="{at}" cy="{y}" r="3.6"/></g>'
        ).format(
            css=row.css,
            told=row.told,
            name=row.name,
            y=f"{_ROW * (place + 0.5):.1f}",
            low=x(row.low),
            high=x(row.high),
            at=x(row.estimate),
        )
        for place, row in enumerate(rows)
    )
    limits = Markup("").join(
        Markup('<path class="limit" d="M{x} 0V{h}"/>').format(x=x(side * limit), h=high - 24)
        for side in (-1, 1)
        if limit is not None
    )
    marks = Markup("").join(
        Markup('<text x="{x}" y="{y}" text-anchor="middle">{t}</text>').format(x=x(value), y=high - 8, t=signed(value))
        for value in (-reach / 1.35, 0.0, reach / 1.35)
    )
    return Markup(
        '<svg class="intervals" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '<path class="zero" d="M{z} 0V{b}"/>{limits}{drawn}{marks}</svg>'
    ).format(w=_WIDE, h=f"{high:.0f}", label=label, z=x(0), b=high - 24, limits=limits, drawn=drawn, marks=marks)


def effect_over_time_chart(points: Sequence[TimePoint], label: str, *, limit: float | None = None) -> Markup:
    """The estimate as a line in the band of its bounds, by moment; `limit` as dashed lines on both sides of zero.

    Early bounds are wide: what lies outside three times the last ones is cut.
    """
    last = points[-1]
    reach = 1.05 * max(1e-9, limit or 0.0, *(abs(point.estimate) for point in points), 3 * (last.high - last.low) / 2)

    def x(place: int) -> float:
        return _LEFT + (_WIDE - _LEFT) * (place + 0.5) / len(points)

    def y(value: float) -> float:
        return _TOP + _HIGH * (0.5 - 0.5 * max(-1.0, min(1.0, value / reach)))

    def line(values: Sequence[float], *, is_back: bool = False) -> str:
        places = range(len(values) - 1, -1, -1) if is_back else range(len(values))
        return " ".join(f"{x(place):.1f},{y(values[place]):.1f}" for place in places)

    highs, lows = [point.high for point in points], [point.low for point in points]
    dots = Markup("").join(
        Markup('<circle cx="{x}" cy="{y}" r="3"><title>{t}</title></circle>').format(
            x=f"{x(place):.1f}",
            y=f"{y(point.estimate):.1f}",
            t=f"{point.label}: {signed(point.estimate)}, from {signed(point.low)} to {signed(point.high)}",
        )
        for place, point in enumerate(points)
    )
    grid = Markup("").join(
        Markup('<path class="{css}" d="M{l} {y}H{r}"/>').format(css=css, l=_LEFT, r=_WIDE, y=f"{y(value):.1f}")
        for css, value in [("zero", 0.0), *(("limit", side * limit) for side in (-1, 1) if limit is not None)]
    )
    ticks = Markup("").join(
        Markup('<text x="{x}" y="{y}" dy="3.5" text-anchor="end">{t}</text>').format(
            x=_LEFT - 6, y=f"{y(value):.1f}", t=signed(value)
        )
        for value in (-reach / 1.05, 0.0, reach / 1.05)
    )
    every = max(1, -(-len(points) // 8))
    labels = Markup("").join(
        Markup('<text x="{x}" y="{y}" text-anchor="middle">{t}</text>').format(
            x=f"{x(place):.1f}", y=_TOP + _HIGH + 18, t=point.label
        )
        for place, point in enumerate(points)
        if place % every == 0
    )
    return Markup(
        '<svg class="overtime" viewBox="0 0 {w} {h}" role="img" aria-label="{label}"><polygon points="{top} {bottom}"/>'
        '{grid}<polyline points="{middle}"/>{dots}{ticks}{labels}</svg>'
    ).format(
        w=_WIDE,
        h=_TOP + _HIGH + 26,
        label=label,
        top=line(highs),
        bottom=line(lows, is_back=True),
        grid=grid,
        middle=line([point.estimate for point in points]),
        dots=dots,
        ticks=ticks,
        labels=labels,
    )


def signed(share: float) -> str:
    """A relative difference as text: +1.2 %, with as many digits as its size asks for."""
    percent = 100 * share
    digits = 0 if abs(percent) >= 100 else 1 if abs(percent) >= 1 else 2
    return f"{percent:+.{digits}f} %" if percent else "0 %"
