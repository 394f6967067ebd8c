"""The inline SVG of the page that compares two releases: distributions over one another, flows between groups, counts.

In the manner of evaluation.charts: pure functions to markup, colours are CSS classes (templates/diff.css), texts from
data are escaped, marks tell their numbers when pointed at, coordinates have one decimal. `was` is drawn grey and
filled, `now` as a line in the accent colour.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from sonder.evaluation.charts import MAX_COLOURS
from sonder.evaluation.user_comparison import Flow

MOST_GROUPS = 12
_WIDE, _HIGH, _GAP = 640.0, 26.0, 3.0
_LEFT, _RIGHT = 190.0, 450.0


def overlay_chart(
    before: Sequence[float], after: Sequence[float], edges: Sequence[float], name: str, was: str, now: str
) -> Markup:
    """Two histograms of the same equal bins; shares of users upwards, square root, so that tails are seen."""
    highest = max(*before, *after) ** 0.5 or 1.0
    num = len(before)

    def y(share: float) -> str:
        return f"{100 - 96 * share**0.5 / highest:.1f}"

    def steps(shares: Sequence[float]) -> str:
        return " ".join(f"L{place} {y(share)}H{place + 1}" for place, share in enumerate(shares))

    marks = Markup("").join(
        Markup('<rect class="mark" x="{x}" y="0" width="1" height="100"><title>{t}</title></rect>').format(
            x=place, t=f"{_edge(edges[place])} to {_edge(edges[place + 1])}: {old:.2%} in {was}, {new:.2%} in {now}"
        )
        for place, (old, new) in enumerate(zip(before, after, strict=True))
    )
    return Markup(
        '<svg class="overlay" viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img" aria-label="{name}">'
        '<path class="was" d="M0 100{old}V100Z"/><path class="now" d="M0 100{new}V100"/>{marks}</svg>'
    ).format(
        n=num, name=f"Distribution of {name} in {was} and in {now}", old=steps(before), new=steps(after), marks=marks
    )


def cosine_chart(shares: Sequence[float], lowest: float) -> Markup:
    """Users by the cosine between their two vectors, from `lowest` to 1."""
    highest, step = max(shares) or 1.0, (1 - lowest) / len(shares)
    bars = Markup("").join(
        Markup('<rect x="{x}" y="{y}" width="0.86" height="{h}"><title>{t}</title></rect>').format(
            x=f"{place + 0.07:.2f}",
            y=f"{100 - 96 * share / highest:.1f}",
            h=f"{96 * share / highest:.1f}",
            t=f"cosine {lowest + step * place:.2f} to {lowest + step * (place + 1):.2f}: {share:.1%} of users",
        )
        for place, share in enumerate(shares)
    )
    return Markup(
        '<svg class="cosines" viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img"'
        ' aria-label="Cosine between the vectors of a user">{bars}</svg>'
    ).format(n=len(shares), bars=bars)


def pairs_chart(pairs: Sequence[tuple[int, int]], name: str, was: str, now: str) -> Markup:
    """Two bars for each number: users before and after."""
    highest = max((max(pair) for pair in pairs), default=0) or 1
    drawn = Markup("").join(
        Markup(
            '<g><title>{t}</title><rect class="was" x="{x0}" y="{y0}" width="0.36" height="{h0}"/>'
            '<rect class="now" x="{x1}" y="{y1}" width="0.36" height="{h1}"/></g>'
        ).format(
            t=f"{place}: {old:,} users in {was}, {new:,} in {now}",
            x0=f"{place + 0.12:.2f}",
            x1=f"{place + 0.52:.2f}",
            y0=f"{100 - 96 * old / highest:.1f}",
            h0=f"{96 * old / highest:.1f}",
            y1=f"{100 - 96 * new / highest:.1f}",
            h1=f"{96 * new / highest:.1f}",
        )
        for place, (old, new) in enumerate(pairs)
    )
    return Markup(
        '<svg class="pairs" viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img"'
        ' aria-label="{name}">{bars}</svg>'
    ).format(n=len(pairs), name=name, bars=drawn)


def flow_chart(flow: Flow, name: str) -> Markup:
    """Groups before on the left, after on the right, joined by ribbons as thick as the users who went that way."""
    flow = _largest(flow)
    high = _HIGH * max(len(flow.before), len(flow.after), 4)
    scale = (high - _GAP * max(len(flow.before), len(flow.after))) / max(flow.users, 1)
    columns = [list(column) for column in zip(*flow.counts, strict=True)]
    tops = [_tops([sum(row) for row in flow.counts], scale), _tops([sum(column) for column in columns], scale)]
    colours = {label: min(place, MAX_COLOURS) for place, label in enumerate(dict.fromkeys((*flow.after, *flow.before)))}
    filled = [list(tops[0]), list(tops[1])]
    ribbons = []
    for row, old in enumerate(flow.before):
        for column, new in enumerate(flow.after):
            users = flow.counts[row][column]
            if users:
                thick = users * scale
                ribbons.append((old, new, users, filled[0][row], filled[1][column], thick))
                filled[0][row] += thick
                filled[1][column] += thick
    ribbons.sort(key=lambda ribbon: (ribbon[0] != ribbon[1], -ribbon[2]))  # who moved is drawn over who stayed
    middle = (_LEFT + _RIGHT) / 2
    paths = Markup("").join(
        Markup(
            '<path class="c{c}{moved}" d="M{l} {y0}C{m} {y0} {m} {y1} {r} {y1}V{y3}C{m} {y3} {m} {y2} {l} {y2}Z">'
            "<title>{t}</title></path>"
        ).format(
            c=colours[old],
            moved="" if old == new else " moved",
            l=_LEFT,
            r=_RIGHT,
            m=middle,
            y0=f"{y0:.1f}",
            y1=f"{y1:.1f}",
            y2=f"{y0 + thick:.1f}",
            y3=f"{y1 + thick:.1f}",
            t=f"{users:,} users: {old} to {new}" if old != new else f"{users:,} users stayed in {old}",
        )
        for old, new, users, y0, y1, thick in ribbons
    )
    labels = Markup("").join(
        [
            *_labels(flow.before, [sum(row) for row in flow.counts], tops[0], scale, colours, is_left=True),
            *_labels(flow.after, [sum(column) for column in columns], tops[1], scale, colours, is_left=False),
        ]
    )
    return Markup(
        '<svg class="ribbons" viewBox="0 0 {w} {h}" role="img" aria-label="{name}">{paths}{labels}</svg>'
    ).format(w=_WIDE, h=f"{high:.0f}", name=name, paths=paths, labels=labels)


def _tops(totals: Sequence[int], scale: float) -> list[float]:
    tops, reached = [], 0.0
    for total in totals:
        tops.append(reached)
        reached += total * scale + _GAP
    return tops


def _labels(
    names: Sequence[str],
    totals: Sequence[int],
    tops: Sequence[float],
    scale: float,
    colours: dict[str, int],
    *,
    is_left: bool,
) -> list[Markup]:
    """A block of each group's colour and its name; a name that has no room is told only when pointed at."""
    drawn, free = [], 0.0
    for name, total, top in zip(names, totals, tops, strict=True):
        thick, middle = total * scale, top + total * scale / 2
        text = Markup("")
        if middle - 6 >= free:
            free = middle + 6
            text = Markup('<text x="{x}" y="{y}" dy="3.5" text-anchor="{a}">{t}</text>').format(
                x=_LEFT - 14 if is_left else _RIGHT + 14,
                y=f"{middle:.1f}",
                a="end" if is_left else "start",
                t=_short(f"{name} · {total:,}"),
            )
        drawn.append(
            Markup('<g><title>{t}</title><rect class="c{c}" x="{x}" y="{y}" width="8" height="{h}"/>{text}</g>').format(
                t=f"{name}: {total:,} users",
                c=colours[name],
                x=_LEFT - 8 if is_left else _RIGHT,
                y=f"{top:.1f}",
                h=f"{max(thick, 0.5):.1f}",
                text=text,
            )
        )
    return drawn


def _largest(flow: Flow) -> Flow:
    """The groups with most users on either side; the rest as one."""
    totals: dict[str, int] = {}
    for name, row in zip(flow.before, flow.counts, strict=True):
        totals[name] = totals.get(name, 0) + sum(row)
    for name, column in zip(flow.after, zip(*flow.counts, strict=True), strict=True):
        totals[name] = totals.get(name, 0) + sum(column)
    if len(totals) <= MOST_GROUPS:
        return flow
    kept = set(sorted(totals, key=lambda name: (-totals[name], name))[: MOST_GROUPS - 1])
    rest = f"{len(totals) - len(kept)} others"
    old = [*(name for name in flow.before if name in kept), rest]
    new = [*(name for name in flow.after if name in kept), rest]
    counts = [[0] * len(new) for _ in old]
    for name, row in zip(flow.before, flow.counts, strict=True):
        for other, users in zip(flow.after, row, strict=True):
            counts[old.index(name if name in kept else rest)][new.index(other if other in kept else rest)] += users
    return Flow(tuple(old), tuple(new), tuple(map(tuple, counts)))


def _short(text: str) -> str:
    return text if len(text) <= 34 else f"{text[:20]}… · {text.rsplit('· ', 1)[-1]}"


def _edge(value: float) -> str:
    return f"{value:.3g}"
