"""The inline SVG of the report. Pure functions from numbers to markup; colours are CSS classes, so themes just work.

Every text that comes from data is escaped. Coordinates have one decimal: the same numbers give the same bytes.
Wide charts stretch (`preserveAspectRatio="none"`, lines keep their width) and leave their labels to HTML, so that
letters stay readable on a phone; square charts scale as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sonder.evaluation.classification import CalibrationPoint

MAX_COLOURS = 8  # CSS classes c0 .. c7; c8 is everything else
REST = "all others"


@dataclass(frozen=True)
class Legend:
    """A colour class, its name and how many it stands for."""

    css: str
    name: str
    count: int


def weekly_chart(weeks: Sequence[tuple[str, int]], test_from: str | None) -> Markup:
    """Bars of events per week; each bar tells its week and number when pointed at, those of the test are marked."""
    highest = max((count for _, count in weeks), default=0) or 1
    gap = 0.16 if len(weeks) <= 150 else 0.0
    bars = Markup("").join(
        Markup(
            '<rect{css} x="{x}" y="{y}" width="{w}" height="{h}"><title>week of {week}: {count} events</title></rect>'
        ).format(
            css=Markup(' class="test"') if test_from is not None and week >= test_from else "",
            x=f"{place + gap / 2:.2f}",
            y=f"{100 - 100 * count / highest:.2f}",
            w=f"{1 - gap:.2f}",
            h=f"{100 * count / highest:.2f}",
            week=week,
            count=f"{count:,}",
        )
        for place, (week, count) in enumerate(weeks)
    )
    label = f"Events per week from {weeks[0][0]} to {weeks[-1][0]}, at most {highest:,}" if weeks else "No weeks"
    return Markup(
        '<svg class="weekly" viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img" aria-label="{label}">'
        "{bars}</svg>"
    ).format(n=max(1, len(weeks)), label=label, bars=bars)


def reliability_chart(curve: Sequence[CalibrationPoint], base_rate: float, name: str) -> Markup:
    """Predicted against observed share, bins as dots sized by their users, on axes that end just above the largest."""
    top = _nice_ceiling(max(max(point.predicted, point.observed) for point in curve))
    left, bottom, side = 38.0, 222.0, 200.0
    most = max(point.users for point in curve)

    def x(value: float) -> str:
        return f"{left + side * value / top:.1f}"

    def y(value: float) -> str:
        return f"{bottom - side * value / top:.1f}"

    ticks = [top * step / 4 for step in range(5)]
    grid = Markup("").join(
        Markup(
            '<path class="grid" d="M{l} {y}H{r}M{x} {b}V{t}"/>'
            '<text x="{lx}" y="{y}" dy="3.5" text-anchor="end">{v}</text>'
            '<text x="{x}" y="{by}" text-anchor="middle">{v}</text>'
        ).format(
            l=left,
            r=left + side,
            b=bottom,
            t=bottom - side,
            y=y(tick),
            x=x(tick),
            lx=left - 6,
            by=bottom + 15,
            v=_share(tick),
        )
        for tick in ticks
    )
    line = " ".join(f"{x(point.predicted)},{y(point.observed)}" for point in curve)
    dots = Markup("").join(
        Markup('<circle cx="{x}" cy="{y}" r="{r}"><title>{t}</title></circle>').format(
            x=x(point.predicted),
            y=y(point.observed),
            r=f"{2.2 + 2.8 * (point.users / most) ** 0.5:.1f}",
            t=f"predicted {point.predicted:.1%}, came true {point.observed:.1%}, {point.users:,} users",
        )
        for point in curve
    )
    return Markup(
        '<svg class="square reliability" viewBox="0 0 252 258" role="img" aria-label="Reliability of {name}">{grid}'
        '<path class="ideal" d="M{x0} {y0}L{x1} {y1}"/><path class="base" d="M{x0} {yb}H{x1}"/>'
        '<polyline class="curve" points="{line}"/><g class="dots">{dots}</g>'
        '<text x="{right}" y="254" text-anchor="end">predicted</text><text x="0" y="10">came true</text>'
        "</svg>"
    ).format(
        name=name, grid=grid, x0=x(0), y0=y(0), x1=x(top), y1=y(top), yb=y(base_rate), line=line, dots=dots,
        right=left + side,
    )  # fmt: skip


def stability_chart(curve: Sequence[tuple[int, float, float]], chosen: int) -> Markup:
    """Stability by number of clusters, that of a cloud without groups dashed below it, and the chosen number."""
    left, bottom, wide, high = 30.0, 152.0, 320.0, 140.0
    first, last = curve[0][0], max(curve[-1][0], curve[0][0] + 1)

    def at(k: int, value: float) -> str:
        return f"{left + wide * (k - first) / (last - first):.1f},{bottom - high * max(value, 0.0):.1f}"

    dots = Markup("").join(
        Markup('<circle cx="{x}" cy="{y}" r="{r}"><title>{t}</title></circle>').format(
            x=at(k, own).split(",")[0],
            y=at(k, own).split(",")[1],
            r="5" if k == chosen else "2.5",
            t=f"{k} clusters: {own:.2f}, without groups {reference:.2f}",
        )
        for k, own, reference in curve
    )
    marks = Markup("").join(
        Markup('<text x="{x}" y="{y}" text-anchor="middle">{k}</text>').format(
            x=at(k, 0).split(",")[0], y=bottom + 15, k=k
        )
        for k in sorted({first, curve[-1][0], *(k for k, _, _ in curve if k == chosen)})
    )
    return Markup(
        '<svg class="square reliability" viewBox="0 0 362 182" role="img" aria-label="Stability by number of clusters">'
        '<path class="grid" d="M{l} {b}H{r}M{l} {t}H{r}"/><text x="{lx}" y="{b}" text-anchor="end">0.0</text>'
        '<text x="{lx}" y="{ty}" text-anchor="end">1.0</text><polyline class="ideal" points="{reference}"/>'
        '<polyline class="curve" points="{own}"/><g class="dots">{dots}</g>{marks}'
        '<text x="{r}" y="{label}" text-anchor="end">clusters</text></svg>'
    ).format(
        l=left, r=left + wide, b=bottom, t=bottom - high, lx=left - 6, ty=bottom - high + 4, label=bottom + 28,
        own=" ".join(at(k, own) for k, own, _ in curve), reference=" ".join(at(k, ref) for k, _, ref in curve),
        dots=dots, marks=marks,
    )  # fmt: skip


def map_chart(points_S2: NDArray[np.float64], labels: Sequence[str], legend: Sequence[Legend], name: str) -> Markup:
    """Dots in a square, one path for each legend entry; labels outside the legend take its last colour."""
    css_of = {entry.name: entry.css for entry in legend}
    rest = legend[-1].css
    drawn: dict[str, list[str]] = {entry.css: [] for entry in legend}
    for (px, py), label in zip(points_S2.tolist(), labels, strict=True):
        drawn[css_of.get(label, rest)].append(f"M{8 + 304 * px:.1f} {8 + 304 * py:.1f}h0")
    order = sorted(drawn, key=lambda css: (css != f"c{MAX_COLOURS}", css))  # the rare ones on top, the rest below
    paths = Markup("").join(
        Markup('<path class="{css}" d="{d}"/>').format(css=css, d="".join(drawn[css])) for css in order if drawn[css]
    )
    return Markup('<svg class="square map" viewBox="0 0 320 320" role="img" aria-label="{name}">{paths}</svg>').format(
        name=name, paths=paths
    )


def legend_of(labels: Sequence[str], order: Sequence[str] | None = None) -> list[Legend]:
    """Colours for the commonest labels (or those of `order`); what is past the colours becomes REST."""
    names, counts = np.unique(np.asarray(labels, dtype=object), return_counts=True)
    count_of = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    ranked = sorted(count_of, key=lambda name: (-count_of[name], name))
    chosen = [name for name in order if name in count_of] if order is not None else ranked
    entries = [Legend(f"c{place}", name, count_of[name]) for place, name in enumerate(chosen[:MAX_COLOURS])]
    others = len(labels) - sum(entry.count for entry in entries)
    return [*entries, Legend(f"c{MAX_COLOURS}", REST, others)] if others else entries


def principal_plane(vectors_SD: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Project onto the first two principal directions -> positions in [0, 1] [S, 2], share of variance they hold.

    The sign of each direction is fixed by its largest coordinate; both axes have the same scale.
    """
    centred = vectors_SD.astype(np.float64) - vectors_SD.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, ::-1][:, :2]
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), np.arange(plane.shape[1])])
    points = centred @ plane
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = 2 * np.abs(points - middle).max()
    total = float(values.sum())
    share = float(values[::-1][:2].sum() / total) if total > 0 else 0.0
    return (points - middle) / (reach if reach > 0 else 1.0) + 0.5, share


def _nice_ceiling(value: float) -> float:
    return next(limit for limit in (0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if value <= limit or limit == 1.0)


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"
