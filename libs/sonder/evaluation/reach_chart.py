"""The reach of a lookalike audience on the report: how similar its last member is, and how precise the audience is.

`reach_view` turns the facts into what templates/lookalike.html shows; the chart is inline SVG as in evaluation.charts.
Both curves are shares of one on one axis, over the size of the audience on a logarithmic one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_LEFT, _BOTTOM, _WIDE, _HIGH = 36.0, 190.0, 480.0, 170.0


@dataclass(frozen=True)
class ReachRow:
    """An audience of one size; all but `similarity` is told by held-out seeds (evaluation.lookalikes.ReachPoint)."""

    size: int
    similarity: float  # of its last member
    share: float  # of everybody ranked
    recall: float
    recall_error: float
    lift: float
    precision: float  # seeds alone count as members
    precision_error: float
    precision_at_most: float


@dataclass(frozen=True)
class ReachFacts:
    """One illustrative list of seeds that a build knows: who did `action` within the `within_days` before as_of."""

    action: str
    within_days: int
    as_of: str
    num_actors: int  # who did it, among the users looked at
    num_seeds: int  # drawn of them
    num_ranked: int  # everybody else
    num_users: int  # of the release
    num_looked_at: int  # whole buckets of them, if not all
    auc: float
    auc_error: float
    protocol: str
    rows: Sequence[ReachRow]  # by rising size


def reach_view(facts: ReachFacts) -> dict[str, Any]:
    """What the template shows."""
    return {"facts": facts, "chart": reach_chart(facts.rows), "is_part": facts.num_looked_at < facts.num_users}


def reach_chart(rows: Sequence[ReachRow]) -> Markup:
    """Similarity as a line; precision as a line (at least) with the band up to what it is at most."""
    first, last = math.log(rows[0].size), math.log(max(rows[-1].size, rows[0].size + 1))

    def at(row: ReachRow, value: float) -> str:
        return f"{_x(row, first, last):.1f},{_y(value):.1f}"

    def line(value: Callable[[ReachRow], float]) -> str:
        return " ".join(at(row, value(row)) for row in rows)

    band = f"{line(lambda row: row.precision)} " + " ".join(at(row, row.precision_at_most) for row in reversed(rows))
    dots = Markup("").join(
        Markup('<circle class="{css}" cx="{x}" cy="{y}" r="2.8"><title>{t}</title></circle>').format(
            css=css, x=f"{_x(row, first, last):.1f}", y=f"{_y(value):.1f}", t=f"{row.size:,} users: {told}"
        )
        for row in rows
        for css, value, told in (
            ("like", row.similarity, f"similarity of the last {row.similarity:.3f}"),
            ("least", row.precision, f"precision {row.precision:.1%} to {row.precision_at_most:.1%}"),
        )
    )
    return Markup(
        '<svg class="square reach" viewBox="0 0 540 226" role="img" aria-label="Similarity and precision by size">'
        '{grid}<polygon class="band" points="{band}"/><polyline class="least" points="{least}"/>'
        '<polyline class="like" points="{like}"/>{dots}{marks}'
        '<text x="{right}" y="222" text-anchor="end">users in the audience</text></svg>'
    ).format(
        grid=_grid(), band=band, least=line(lambda row: row.precision), like=line(lambda row: row.similarity),
        dots=dots, marks=_marks(rows, first, last), right=_LEFT + _WIDE,
    )  # fmt: skip


def _x(row: ReachRow, first: float, last: float) -> float:
    return _LEFT + _WIDE * (math.log(row.size) - first) / (last - first)


def _y(value: float) -> float:
    return _BOTTOM - _HIGH * value


def _grid() -> Markup:
    return Markup("").join(
        Markup(
            '<path class="grid" d="M{l} {y}H{r}"/><text x="{lx}" y="{y}" dy="3.5" text-anchor="end">{t}</text>'
        ).format(l=_LEFT, r=_LEFT + _WIDE, y=f"{_y(step / 4):.1f}", lx=_LEFT - 6, t=f"{step / 4:.2f}")
        for step in range(5)
    )


def _marks(rows: Sequence[ReachRow], first: float, last: float) -> Markup:
    """The size under each row, but for one that would touch the one before."""
    marks, end = [], -math.inf
    for row in rows:
        x = _x(row, first, last)
        half = 3.2 * len(f"{row.size:,}")
        if x - half > end + 4:
            mark = Markup('<text x="{x}" y="{y}" text-anchor="middle">{size}</text>')
            marks.append(mark.format(x=f"{x:.1f}", y=_BOTTOM + 15, size=f"{row.size:,}"))
            end = x + half
    return Markup("").join(marks)
