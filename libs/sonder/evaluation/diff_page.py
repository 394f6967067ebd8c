"""The page that compares two releases: one self-contained HTML file in the style of the report.

`was` is the release that is looked at from, `now` the one that is asked about. Nothing is drawn that was not measured;
what cannot be compared says why. The same comparison gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sonder.evaluation.diff_charts import cosine_chart, flow_chart, overlay_chart, pairs_chart
from sonder.evaluation.page import page_environment, styles
from sonder.evaluation.report_facts import percent
from sonder.evaluation.user_comparison import MOST_INTERESTS, Flow, ScoreShift, UserComparison, VectorShift
from sonder.releases.differences import Differences, MetricChange, ValueChange
from sonder.releases.gate import Finding, Verdict, change_of, told

FULL_BAR = 0.1  # relative change that fills a bar
PSI_SAME, PSI_OTHER = 0.1, 0.25
_GROUPS = {  # first part of a metric's name -> heading; the others follow under their own name
    "retrieval": "Retrieval",
    "scores": "Scores",
    "interests": "Interests",
    "lifecycle": "Lifecycle",
    "segments": "Segments",
    "stability": "Stability since the parent",
    "coverage": "Coverage: share of users of whom a field is known",
    "rows": "Rows",
    "data": "Log",
    "truth": "Against the truth of a synthetic world",
    "size_bytes": "Sizes",
}


def render_diff(differences: Differences, users: UserComparison, *, share: float, verdict: Verdict | None) -> str:
    """The page as one string; `share` of the users was read."""
    was, now = differences.was, differences.now
    return page_environment().get_template("diff.html").render(
        d=differences,
        u=users,
        css=styles("report.css", "growth.css", "diff.css"),
        facts=_headline(differences, users, verdict),
        share=share,
        promises=None if verdict is None else _promises(verdict),
        groups=_groups(differences.metrics),
        same=[change.name for change in differences.metrics if change.judgement == "same"],
        lifecycle=_matrix(users.lifecycle),
        clusters=_clusters(users.clusters),
        scores=[_score(shift, was, now) for shift in users.scores],
        vectors=_vectors(users.vectors),
        interests=_interests(users, was, now),
        tables=[
            (title, changes, _texts(changes))
            for title, changes in (
                ("Configuration", differences.config),
                ("Fields of a profile", differences.fields),
                ("Inputs", differences.inputs),
            )
        ],
    )  # fmt: skip


def psi_word(psi: float) -> str:
    """The reading that is common in the industry."""
    return "the same" if psi < PSI_SAME else "somewhat moved" if psi < PSI_OTHER else "another population"


def _headline(differences: Differences, users: UserComparison, verdict: Verdict | None) -> list[dict[str, str]]:
    better, worse = differences.count("better"), differences.count("worse")
    facts = [{"figure": f"{better} : {worse}", "sentence": f"metrics are better : worse in {differences.now}."}]
    if verdict is not None:
        broken = len(verdict.refusals)
        figure = f"{len(verdict.findings) - broken} of {len(verdict.findings)}"
        ending = "A promotion would be refused." if verdict.would_refuse else "A promotion would go through."
        facts.append({"figure": figure, "sentence": f"promises to consumers are kept. {ending}"})
    if users.users:
        facts.append(
            {"figure": percent(users.lifecycle.stayed), "sentence": "of users are in the same lifecycle state."}
        )
        facts.append(
            {"figure": percent(users.clusters.stayed), "sentence": "of users are in the same behaviour cluster."}
        )
    if users.scores:
        most = max(users.scores, key=lambda shift: shift.psi)
        facts.append({"figure": f"{most.psi:.3f}", "sentence": f"is the largest PSI of a score, that of {most.name}."})
    if users.vectors.movement is not None:
        median = f"{users.vectors.movement.median:.3f}"
        facts.append({"figure": median, "sentence": "is the median cosine between a user's two vectors."})
    elif users.vectors.is_other_space:
        facts.append({"figure": "Different space", "sentence": "the vectors of the two cannot be compared."})
    return facts


def _promises(verdict: Verdict) -> list[dict[str, Any]]:
    """The owner stands at the first promise to a consumer."""
    first = {finding.consumer: place for place, finding in reversed(list(enumerate(verdict.findings)))}
    return [
        {"finding": finding, "is_first": first[finding.consumer] == place, **_values(finding)}
        for place, finding in enumerate(verdict.findings)
    ]


def _values(finding: Finding) -> dict[str, str]:
    """Numbers of a metric; the type of a field only where it says something."""
    if finding.status == "kept" and isinstance(finding.now, str):
        return {"was": "", "now": "", "change": ""}
    return {"was": told(finding.was), "now": told(finding.now), "change": change_of(finding.was, finding.now)}


def _groups(metrics: Sequence[MetricChange]) -> list[dict[str, Any]]:
    """Metrics that changed, by the first part of their name."""
    found: dict[str, list[MetricChange]] = {}
    for change in metrics:
        if change.judgement == "same":
            continue
        found.setdefault(change.name.split(".")[0], []).append(change)
    order = [*(name for name in _GROUPS if name in found), *sorted(found.keys() - _GROUPS.keys())]
    return [
        {
            "title": _GROUPS.get(name, name),
            "rows": [_row(change) for change in found[name]],
        }
        for name in order
    ]


def _row(change: MetricChange) -> dict[str, Any]:
    relative = change.relative
    width = 0.0 if relative is None else 50 * min(abs(relative) / FULL_BAR, 1.0)
    return {
        "change": change,
        "was": _shown(change.name, change.was),
        "now": _shown(change.name, change.now),
        "relative": change_of(change.was, change.now),
        "width": width,
        "is_right": change.judgement == "better" or (change.judgement == "moved" and (relative or 0) > 0),
        "note": change.why or ("within chance" if change.is_chance else ""),
    }


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "absent"
    return percent(value) if name.startswith("coverage.") else told(value)


def _matrix(flow: Flow) -> dict[str, Any]:
    rows = []
    for name, row in zip(flow.before, flow.counts, strict=True):
        total = sum(row)
        cells = [
            {"share": users / total if total else 0.0, "users": users, "is_same": name == other}
            for other, users in zip(flow.after, row, strict=True)
        ]
        rows.append({"name": name, "cells": cells, "users": total})
    totals = [sum(column) for column in zip(*flow.counts, strict=True)]
    return {"columns": flow.after, "rows": rows, "totals": totals, "stayed": flow.stayed}


def _clusters(flow: Flow) -> dict[str, Any] | None:
    if len(flow.before) + len(flow.after) <= 2:
        return None
    moves = [
        (users, old, new)
        for old, row in zip(flow.before, flow.counts, strict=True)
        for new, users in zip(flow.after, row, strict=True)
        if old != new and users
    ]
    moves.sort(key=lambda move: (-move[0], move[1], move[2]))
    return {
        "chart": flow_chart(flow, "Behaviour clusters before and after"),
        "moves": moves[:10],
        "num_moves": len(moves),
    }


def _score(shift: ScoreShift, was: str, now: str) -> dict[str, Any]:
    chart = overlay_chart(shift.before, shift.after, shift.edges, shift.name, was, now)
    return {"shift": shift, "chart": chart, "word": psi_word(shift.psi), "top": f"{shift.edges[-1]:.3g}"}


def _vectors(shift: VectorShift) -> dict[str, Any]:
    return {"chart": cosine_chart(shift.histogram, shift.lowest) if shift.histogram else None}


def _interests(users: UserComparison, was: str, now: str) -> dict[str, Any] | None:
    pairs = users.interests
    if not users.users or not any(sum(pair) for pair in pairs[1:]):
        return None
    last = max(place for place, pair in enumerate(pairs) if sum(pair))
    means = [sum(place * pair[side] for place, pair in enumerate(pairs)) / users.users for side in (0, 1)]
    labels = [f"{place} or more" if place == MOST_INTERESTS else str(place) for place in range(last + 1)]
    chart = pairs_chart(pairs[: last + 1], "Interests per user", was, now)
    return {"chart": chart, "labels": labels, "means": means}


def _texts(changes: Sequence[ValueChange]) -> list[tuple[str, str]]:
    return [(_text(change.was), _text(change.now)) for change in changes]


def _text(value: Any) -> str:
    """A setting as its file spells it; long ones are cut."""
    text = "not there" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}…"
