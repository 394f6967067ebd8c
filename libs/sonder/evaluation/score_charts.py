"""The inline SVG of a score's pages: lift, reliability, calibration by slice, backtest over time, global drivers.

Pure functions from the plain data of ranked_rows, score_slices and backtest to markup, in the manner of
evaluation.charts: colours are CSS classes (templates/scores.css), texts from data are escaped, marks tell their
numbers when pointed at. What was read back from JSON is given as `ScoreSlice(**content)`, `BacktestPoint(**content)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from sonder.evaluation.backtest import BacktestPoint
from sonder.evaluation.ranked_rows import LiftPoint
from sonder.evaluation.score_slices import ScoreSlice

_LEFT, _BOTTOM, _SIDE = 38.0, 222.0, 200.0
_ROW = 24.0


@dataclass(frozen=True)
class DriverBar:
    """What one family of features adds to a score over all users."""

    family: str
    mean_contribution: float  # mean absolute, log-odds (or log of the mean)
    direction: float  # in [-1, 1]: 1 raises the score where the feature is high, -1 lowers it, 0 both or neither


def lift_chart(points: Sequence[LiftPoint], name: str) -> Markup:
    """Share of all positives (or value) that the best-scored users hold; the diagonal is chance."""
    reached = [(0.0, 0.0), *((point.tenth / 10, point.cumulative_share or 0.0) for point in points)]

    def at(share: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + _SIDE * share[0], _BOTTOM - _SIDE * share[1]

    line = " ".join("{:.1f},{:.1f}".format(*at(share)) for share in reached)
    dots = _dots(
        (*at(share), 2.8, f"best {share[0]:.0%} of users hold {share[1]:.1%}, {point.observed:.3g} each in this tenth")
        for share, point in zip(reached[1:], points, strict=True)
    )
    corner = f"{_LEFT},{_BOTTOM}"
    return Markup(
        '<svg class="square quality" viewBox="0 0 252 258" role="img" aria-label="Lift of {name}">{grid}'
        '<path class="ideal" d="M{corner}L{r},{t}"/><polygon class="band" points="{line} {corner}"/>'
        '<polyline class="curve" points="{line}"/>{dots}'
        '<text x="{r}" y="254" text-anchor="end">best-scored users</text>'
        '<text x="0" y="10">share of all they hold</text></svg>'
    ).format(
        name=name, grid=_square_grid(1.0, _percent), corner=corner, r=_LEFT + _SIDE, t=_BOTTOM - _SIDE, line=line,
        dots=dots,
    )  # fmt: skip


def reliability_band_chart(levels: Sequence[ScoreSlice], name: str, *, is_share: bool = True) -> Markup:
    """Predicted against observed mean by level of the score, lowest first, with the band of the intervals."""
    top = _ceiling(max(max(level.predicted, level.observed, level.observed_high) for level in levels))
    told = _percent if is_share else _number

    def at(predicted: float, observed: float) -> tuple[float, float]:
        return _LEFT + _SIDE * predicted / top, _BOTTOM - _SIDE * min(observed, top) / top

    def line(value: Callable[[ScoreSlice], float], along: Sequence[ScoreSlice]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*at(level.predicted, value(level))) for level in along)

    lows, highs = (
        line(lambda level: level.observed_low, levels),
        line(lambda level: level.observed_high, levels[::-1]),
    )
    dots = _dots(
        (
            *at(level.predicted, level.observed),
            3.0,
            f"predicted {told(level.predicted)}, came {told(level.observed)}"
            f" ({told(level.observed_low)} to {told(level.observed_high)}), {level.users:,} users",
        )
        for level in levels
    )
    return Markup(
        '<svg class="square quality" viewBox="0 0 252 258" role="img" aria-label="Reliability of {name}">{grid}'
        '<path class="ideal" d="M{l},{b}L{r},{t}"/><polygon class="band" points="{lows} {highs}"/>'
        '<polyline class="curve" points="{line}"/>{dots}<text x="{r}" y="254" text-anchor="end">predicted</text>'
        '<text x="0" y="10">{came}</text></svg>'
    ).format(
        name=name, grid=_square_grid(top, told), l=_LEFT, b=_BOTTOM, r=_LEFT + _SIDE, t=_BOTTOM - _SIDE, lows=lows,
        highs=highs, line=line(lambda level: level.observed, levels), dots=dots,
        came="came true" if is_share else "came",
    )  # fmt: skip


def slices_chart(slices: Sequence[ScoreSlice], name: str, *, is_share: bool = True) -> Markup:
    """A row per slice: what came as a dot in its interval, what was predicted as an upright stroke."""
    top = _ceiling(max(max(entry.predicted, entry.observed_high) for entry in slices))
    told, left, wide, foot = (_percent if is_share else _number), 132.0, 300.0, 22.0 + _ROW * len(slices)

    def x(value: float) -> str:
        return f"{left + wide * min(value, top) / top:.1f}"

    rows = Markup("").join(
        Markup(
            '<g class="{css}"><title>{t}</title><text x="{lx}" y="{y}" dy="3.5" text-anchor="end">{name}</text>'
            '<path class="whisker" d="M{low} {y}H{high}"/><circle cx="{x}" cy="{y}" r="4"/>'
            '<path class="predicted" d="M{p} {y0}v14"/>'
            '<text x="520" y="{y}" dy="3.5" text-anchor="end">{users}</text></g>'
        ).format(
            css={True: "inside", False: "outside", None: "unjudged"}[entry.is_inside],
            t=f"{entry.name}: predicted {told(entry.predicted)}, came {told(entry.observed)}"
            f" ({told(entry.observed_low)} to {told(entry.observed_high)}), {entry.users:,} users"
            + ("" if entry.is_inside is not None else ", too few to judge"),
            lx=left - 10, y=f"{_middle(place):.1f}", y0=f"{_middle(place) - 7:.1f}", name=entry.name,
            low=x(entry.observed_low), high=x(entry.observed_high), x=x(entry.observed), p=x(entry.predicted),
            users=f"{entry.users:,}",
        )
        for place, entry in enumerate(slices)
    )  # fmt: skip
    grid = Markup("").join(
        Markup('<path class="grid" d="M{x} 18V{b}"/><text x="{x}" y="{y}" text-anchor="middle">{v}</text>').format(
            x=x(top * step / 4), b=foot, y=foot + 15, v=told(top * step / 4)
        )
        for step in range(5)
    )
    return Markup(
        '<svg class="square quality wide" viewBox="0 0 524 {h}" role="img" aria-label="Calibration of {name} by slice">'
        '{grid}{rows}<text x="520" y="10" text-anchor="end">users</text></svg>'
    ).format(h=foot + 22, name=name, grid=grid, rows=rows)


def backtest_chart(points: Sequence[BacktestPoint], name: str) -> Markup:
    """Two small charts over the cutoffs: AUC (or normalised Gini), and predicted over observed with its interval."""
    uses_auc = any(point.auc is not None for point in points)
    orders = [(point, point.auc if uses_auc else point.gini) for point in points]
    ratios = [(point, point.predicted_to_observed) for point in points]
    ends = [end for point in points if point.ratio_interval is not None for end in point.ratio_interval]
    told = [value for _, value in orders if value is not None]
    low = math.floor(10 * min(told, default=0.5)) / 10
    left = _small_chart(
        orders, "AUC" if uses_auc else "normalised Gini", 0.0, (min(low, 0.5) if uses_auc else low, 1.0)
    )
    reach = max([0.1, *(abs(math.log(max(value, 1e-3))) for value in [*ends, *(v for _, v in ratios if v)])])
    high = math.ceil(10 * math.exp(reach)) / 10
    right = _small_chart(ratios, "predicted / observed", 280.0, (max(0.0, 2 - high), high), reference=1.0)
    return Markup(
        '<svg class="square quality wide" viewBox="0 0 540 176" role="img" aria-label="Backtest of {name}">{l}{r}</svg>'
    ).format(name=name, l=left, r=right)


def drivers_chart(bars: Sequence[DriverBar], name: str) -> Markup:
    """A bar per family, longest first; its colour says whether more of it raises or lowers the score."""
    ranked = sorted(bars, key=lambda bar: (-bar.mean_contribution, bar.family))
    longest = max((bar.mean_contribution for bar in ranked), default=0.0) or 1.0
    rows = Markup("").join(
        Markup(
            '<g class="{css}"><title>{t}</title><text class="told" x="0" y="{y}">{family}</text>'
            '<text x="524" y="{y}" text-anchor="end">{word}, {v}</text>'
            '<rect x="0" y="{yb}" width="{w}" height="9" rx="2"/></g>'
        ).format(
            css=_direction(bar)[0], word=_direction(bar)[1], family=bar.family, v=f"{bar.mean_contribution:.3f}",
            t=f"{bar.family}: {bar.mean_contribution:.3f} on average, {_direction(bar)[1]}",
            y=f"{13 + 32 * place}", yb=f"{18 + 32 * place}", w=f"{524 * bar.mean_contribution / longest:.1f}",
        )
        for place, bar in enumerate(ranked)
    )  # fmt: skip
    return Markup(
        '<svg class="square quality wide drivers" viewBox="0 0 524 {h}" role="img" aria-label="Drivers of {name}">'
        "{rows}</svg>"
    ).format(h=max(1, 32 * len(ranked)), name=name, rows=rows)


def _small_chart(
    values: Sequence[tuple[BacktestPoint, float | None]],
    title: str,
    left: float,
    span: tuple[float, float],
    reference: float | None = None,
) -> Markup:
    """One of the two; cutoffs at their true distance."""
    first_us, last_us = values[0][0].cutoff_us, max(values[-1][0].cutoff_us, values[0][0].cutoff_us + 1)
    start, wide, foot, high = left + 34, 214.0, 138.0, 112.0

    def x(point: BacktestPoint) -> float:
        return start + wide * (point.cutoff_us - first_us) / (last_us - first_us)

    def y(value: float) -> float:
        return foot - high * (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])

    known = [(point, value) for point, value in values if value is not None]
    spans = [(point, point.ratio_interval) for point, _ in known if point.ratio_interval is not None]
    is_banded = reference is not None and len(spans) > 1
    around = [f"{x(p):.1f},{y(e[0]):.1f}" for p, e in spans] + [f"{x(p):.1f},{y(e[1]):.1f}" for p, e in spans[::-1]]
    ticks = [span[0] + (span[1] - span[0]) * step / 2 for step in range(3)]
    grid = Markup("").join(
        Markup(
            '<path class="grid" d="M{l} {y}H{r}"/><text x="{lx}" y="{y}" dy="3.5" text-anchor="end">{v}</text>'
        ).format(l=start, r=start + wide, lx=start - 6, y=f"{y(tick):.1f}", v=f"{tick:.2f}")
        for tick in ticks
    )
    dots = _dots((x(p), y(v), 3.0, f"{_told_cutoff(p)}: {title} {v:.3f}, {p.users:,} users") for p, v in known)
    return Markup(
        '{grid}{band}{ideal}<polyline class="curve" points="{line}"/>{dots}<text class="told" x="{left}" y="11">{title}'
        '</text><text x="{start}" y="156">{first}</text><text x="{end}" y="156" text-anchor="end">{last}</text>{ages}'
    ).format(
        grid=grid, dots=dots, left=left, title=title, start=start, end=start + wide,
        line=" ".join(f"{x(point):.1f},{y(value):.1f}" for point, value in known),
        first=_day(values[0][0]), last=_day(values[-1][0]) if len(values) > 1 else "",
        band=Markup('<polygon class="band" points="{}"/>').format(" ".join(around)) if is_banded else "",
        ideal="" if reference is None else Markup('<path class="ideal" d="M{l} {y}H{r}"/>').format(
            l=start, r=start + wide, y=f"{y(reference):.1f}"
        ),
        ages=_ages(values, start, start + wide),
    )  # fmt: skip


def _ages(values: Sequence[tuple[BacktestPoint, float | None]], start: float, end: float) -> Markup:
    """How old the model was at the first and the last cutoff, under their days."""
    ages = [point.age_days for point, _ in (values[0], values[-1])]
    if ages[0] is None or ages[1] is None:
        return Markup("")
    marks = Markup('<text x="{s}" y="171">model {a:.0f} days old</text>').format(s=start, a=ages[0])
    if len(values) > 1:
        marks += Markup('<text x="{e}" y="171" text-anchor="end">{a:.0f} days old</text>').format(e=end, a=ages[1])
    return marks


def _told_cutoff(point: BacktestPoint) -> str:
    return _day(point) if point.age_days is None else f"{_day(point)}, model {point.age_days:.0f} days old"


def _day(point: BacktestPoint) -> str:
    return datetime.fromtimestamp(point.cutoff_us / 1e6, UTC).date().isoformat()


def _direction(bar: DriverBar) -> tuple[str, str]:
    if abs(bar.direction) < 0.2:
        return "mixed", "both ways"
    return ("raises", "more raises it") if bar.direction > 0 else ("lowers", "more lowers it")


def _middle(place: int) -> float:
    return 18 + _ROW * (place + 0.5)


def _dots(marks: Iterable[tuple[float, float, float, str]]) -> Markup:
    """Circles (x, y, radius, text)."""
    return Markup("").join(
        Markup('<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"><title>{t}</title></circle>').format(x=x, y=y, r=r, t=t)
        for x, y, r, t in marks
    )


def _square_grid(top: float, told: Callable[[float], str]) -> Markup:
    return Markup("").join(
        Markup(
            '<path class="grid" d="M{l} {y}H{r}M{x} {b}V{t}"/>'
            '<text x="{lx}" y="{y}" dy="3.5" text-anchor="end">{v}</text>'
            '<text x="{x}" y="{by}" text-anchor="middle">{v}</text>'
        ).format(
            l=_LEFT, r=_LEFT + _SIDE, b=_BOTTOM, t=_BOTTOM - _SIDE, lx=_LEFT - 6, by=_BOTTOM + 15,
            y=f"{_BOTTOM - _SIDE * step / 4:.1f}", x=f"{_LEFT + _SIDE * step / 4:.1f}", v=told(top * step / 4),
        )
        for step in range(5)
    )  # fmt: skip


def _ceiling(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten; four parts of it are short numbers."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if value <= step * power * (1 + 1e-9))


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
