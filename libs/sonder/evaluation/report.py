"""Write the report of a build: `index.html`, one self-contained page for people, and `metrics.json` for programs.

The page asks nothing of the network and runs no script (its own Content-Security-Policy forbids both), follows the
reader's light or dark setting, prints, and fits a phone. Everything that comes from data is escaped by Jinja's
autoescape; only the charts (evaluation.charts) are markup, and they escape what they show. The same content gives the
same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from sonder.core.storage import Folder
from sonder.core.telemetry import stage
from sonder.evaluation.charts import (
    MAX_COLOURS,
    legend_of,
    map_chart,
    principal_plane,
    reliability_chart,
    stability_chart,
    weekly_chart,
)
from sonder.evaluation.growth_charts import growth_view
from sonder.evaluation.reach_chart import reach_view
from sonder.evaluation.report_content import ClusterFacts, EmbeddingSample, ReportContent, RetrievalFacts
from sonder.evaluation.report_facts import (
    CLUSTER_REASONS,
    CLUSTER_STARTS,
    GLOSSARY,
    MODEL_NAMES,
    REASONS,
    SLICES,
    headline_facts,
    hide_sentence,
    percent,
    protocol_sentence,
    settings_sentence,
    verdict,
)
from sonder.evaluation.score_pages import score_view
from sonder.evaluation.stability_view import stability_view

PAGE, METRICS = "index.html", "metrics.json"
_UNBREAKABLE = re.compile(r"(\d{4}-\d{2}-\d{2}|\d[\d.,]* %)")
STATES = ("new", "core", "casual", "marginal", "resurrected", "dormant", "cold")  # from here to gone
METHOD_LIMITS = (
    "Numbers of a log's past say what would have been found among what users chose anyway. What users would do if they "
    "saw other suggestions only an experiment can tell.",
    "Hit rates depend on the size of the catalogue, the length of the test and whether known items may repeat: compare "
    "only numbers of the same table.",
    "Scores are chances over many users. For a single user they are a bet, not a verdict.",
    "Interests and segments describe behaviour in this log, not persons; they know nothing of what happened elsewhere.",
)
CONTENTS = (
    ("data", "Data"),
    ("quality", "Quality"),
    ("lifecycle", "Lifecycle"),
    ("clusters", "Clusters"),
    ("scores", "Scores"),
    ("stability", "Stability"),
    ("lookalike", "Lookalikes"),
    ("map", "Map"),
    ("interests", "Interests"),
    ("stories", "Examples"),
    ("written", "Files"),
    ("limits", "Limits"),
    ("glossary", "Glossary"),
)
COLUMNS = (
    ("hr_at_10", "HR@10"),
    ("ndcg_at_10", "NDCG@10"),
    ("hr_at_10_unseen", "HR@10, new items"),
    ("ndcg_at_10_unseen", "NDCG@10, new items"),
    ("p90_coverage_at_10", "P90 coverage@10"),
    ("interest_entropy_at_10", "Interest entropy@10"),
)
HIDE_COLUMNS = (
    ("recall_at_10", "Wanted items suggested, recall@10"),
    ("hide_rate_at_10", "Refused items suggested, hide rate@10"),
    ("hide_lift_at_10", "Hide lift@10"),
    ("p90_coverage_at_10", "P90 coverage@10"),
)


def write_report(folder: Folder, content: ReportContent) -> dict[str, float]:
    """Write both files into `folder` -> the flat metrics."""
    with stage("evaluation.report", release=content.release_id) as counts:
        metrics = {key: value for key, value in content.metrics.items() if math.isfinite(value)}
        page = render(content).encode()
        (folder / METRICS).write_json(metrics)
        (folder / PAGE).write_bytes(page)
        counts.update(metrics=len(metrics), size_bytes=len(page))
    return metrics


def render(content: ReportContent) -> str:
    """The page as one string."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sonder.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "percent": _percent,
        "decimals": _decimals,
        "size": _size,
        "unbroken": _unbroken,
    }
    templates = resources.files("sonder.evaluation").joinpath("templates")
    css = "".join(
        templates.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "growth.css", "scores.css")
    )
    return environment.get_template("report.html").render(
        c=content,
        css=Markup(css),
        facts=headline_facts(content),
        contents=CONTENTS,
        weekly=_weekly(content),
        by_reason=sorted(content.data.by_reason.items(), key=lambda pair: (-pair[1], pair[0])),
        reasons=REASONS,
        quality=_quality(content.retrieval) if content.retrieval is not None else None,
        **_lifecycle(content),
        clusters=_clusters(content.clusters),
        scores=[score_view(facts) for facts in content.scores],
        stability=None if content.stability is None else stability_view(content.stability),
        reach=None if content.reach is None else reach_view(content.reach),
        map=_map(content.embedding),
        **_interests(content),
        affinity_chart=_affinity_chart(content),
        limits=[*content.limits, *METHOD_LIMITS],
        glossary=GLOSSARY,
        config=json.dumps(content.config, indent=2, ensure_ascii=False, sort_keys=True),
    )


def _weekly(content: ReportContent) -> dict[str, Any] | None:
    weeks = content.data.events_per_week
    if not weeks:
        return None
    peak, highest = max(weeks, key=lambda week: week[1])
    is_cut = content.retrieval is not None and content.retrieval.protocol == "temporal"
    test_from = content.retrieval.cutoff if content.retrieval is not None and is_cut else None
    return {
        "chart": weekly_chart(weeks, test_from),
        "first": weeks[0][0],
        "last": weeks[-1][0],
        "peak": peak,
        "highest": highest,
        "test_from": test_from,
    }


def _quality(retrieval: RetrievalFacts) -> dict[str, Any]:
    metrics, health = retrieval.evaluation.metrics, retrieval.evaluation.health
    views = []
    for suffix, title in (("", "All items"), ("_unseen", "New items only")):
        rates = {model: metrics.get(f"retrieval.{model}.hr_at_10{suffix}") for model in MODEL_NAMES}
        highest = max((rate for rate in rates.values() if rate is not None), default=0.0) or 1.0
        rows = [
            {"name": MODEL_NAMES[model], "own": model == "encoder", "value": rate, "width": 100 * (rate or 0) / highest}
            for model, rate in rates.items()
        ]
        views.append({"title": title, "rows": rows, "verdict": verdict(retrieval, suffix)})
    return {
        "protocol": protocol_sentence(retrieval),
        "caption": f"protocol {retrieval.protocol}, cutoff {retrieval.cutoff}",
        "views": views,
        "table": _table(metrics),
        "hides": _hides(retrieval),
        "settings": settings_sentence(health["settings"]) if "settings" in health else None,
        "slices": _slices(health.get("slices", {})),
        "vectors": health.get("vectors"),
        "warnings": health.get("warnings", []),
    }


def _table(metrics: dict[str, float]) -> list[dict[str, Any]]:
    best = {key: max(metrics.get(f"retrieval.{model}.{key}", -1.0) for model in MODEL_NAMES) for key, _ in COLUMNS}
    table = []
    for model, name in MODEL_NAMES.items():
        values = [(metrics.get(f"retrieval.{model}.{key}"), key, label) for key, label in COLUMNS]
        cells = [{"value": value, "label": label, "best": value == best[key]} for value, key, label in values]
        table.append({"name": name, "own": model == "encoder", "cells": cells})
    return table


def _hides(retrieval: RetrievalFacts) -> dict[str, Any] | None:
    """The table of what users refused; None where they refused nothing."""
    metrics, sentence = retrieval.evaluation.metrics, hide_sentence(retrieval)
    if sentence is None:
        return None
    rows = []
    for model, name in MODEL_NAMES.items():
        cells = [(metrics.get(f"retrieval.{model}.{key}"), label) for key, label in HIDE_COLUMNS]
        rows.append({"name": name, "own": model == "encoder", "cells": cells})
    return {"rows": rows, "sentence": sentence, "labels": [label for _, label in HIDE_COLUMNS]}


def _lifecycle(content: ReportContent) -> dict[str, Any]:
    counts = content.lifecycle.counts if content.lifecycle is not None else {}
    total = sum(counts.values())
    known = [*STATES, *sorted(set(counts) - set(STATES))]
    mix = [
        {"name": state, "users": counts[state], "share": counts[state] / total, "colour": min(place, MAX_COLOURS)}
        for place, state in enumerate(known)
        if counts.get(state)
    ]
    growth = content.lifecycle.growth if content.lifecycle is not None else None
    return {"mix": mix, "mix_total": total, "growth": None if growth is None else growth_view(growth, STATES)}


def _clusters(facts: ClusterFacts | None) -> dict[str, Any] | None:
    if facts is None or not facts.portraits:
        return None
    total = sum(portrait.users for portrait in facts.portraits)
    rows = []
    for portrait in facts.portraits:
        mix = [
            {"state": state, "share": portrait.lifecycle[state] / max(portrait.users, 1), "colour": place}
            for place, state in enumerate(STATES)
            if portrait.lifecycle.get(state)
        ]
        lifts = [f"{trait} {lift:.1f} times ({percent(share)})" for trait, share, lift in portrait.lifts]
        rows.append({"portrait": portrait, "share": portrait.users / max(total, 1), "mix": mix, "lifts": lifts})
    chart = stability_chart(facts.curve, len(rows)) if facts.curve else None
    why, start = CLUSTER_REASONS.get(facts.reason, ""), CLUSTER_STARTS.get(facts.start, "")
    return {"rows": rows, "users": total, "chart": chart, "why": why, "start": start}


def _map(sample: EmbeddingSample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    rows = np.flatnonzero(np.any(sample.vectors_SD != 0, axis=1)).tolist()
    if len(rows) < 3:
        return None
    points, share = principal_plane(sample.vectors_SD[rows])
    states = [sample.lifecycle[row] for row in rows]
    categories = coarse_categories([sample.categories[row] for row in rows])
    panels = []
    for title, labels, order in (("By lifecycle", states, STATES), ("By strongest interest", categories, None)):
        if len(set(labels)) > 1:
            legend = legend_of(labels, order)
            panels.append({"title": title, "legend": legend, "chart": map_chart(points, labels, legend, title)})
    if not panels:
        legend = legend_of(["user"] * len(points))
        panels = [
            {"title": "Users", "legend": legend, "chart": map_chart(points, ["user"] * len(points), legend, "Users")}
        ]
    return {"users": len(points), "width": sample.vectors_SD.shape[1], "share": share, "panels": panels}


def coarse_categories(paths: Sequence[str | None]) -> list[str]:
    """Cut category paths to the deepest level with no more names than the map has colours; at least one level."""
    known = [path.split("/") for path in paths if path is not None]
    deepest = max((len(path) for path in known), default=1)
    depth = next((d for d in range(deepest, 1, -1) if len({tuple(path[:d]) for path in known}) <= MAX_COLOURS), 1)
    return ["no category" if path is None else "/".join(path.split("/")[:depth]) for path in paths]


def _interests(content: ReportContent) -> dict[str, Any]:
    facts = content.interests
    if facts is None:
        return {"categories": [], "interest_states": ""}
    highest = max((users for _, users, _ in facts.top_categories), default=1)
    rows = [{"name": name, "users": users, "width": 100 * users / highest} for name, users, _ in facts.top_categories]
    total = sum(facts.states.values())
    states = ", ".join(f"{percent(number / total)} {state}" for state, number in facts.states.items())
    return {"categories": rows, "interest_states": states}


def _affinity_chart(content: ReportContent) -> Markup | None:
    """Reliability at the top of the tree; the line across is the mean share that came true."""
    top = [quality for quality in content.affinity.qualities if quality.level == 1] if content.affinity else []
    if not top:
        return None
    curve = top[0].curve
    mean = sum(point.users * point.observed for point in curve) / sum(point.users for point in curve)
    return reliability_chart(curve, mean, "share of a category, level 1")


def _unbroken(text: str) -> Markup:
    """Keep dates and percentages on one line."""
    parts = _UNBREAKABLE.split(text)  # the odd ones are the matches
    return Markup("").join(
        Markup('<span class="nowrap">{}</span>').format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else percent(value)


def _decimals(value: float | None, places: int = 4) -> str:
    return "not measured" if value is None else f"{value:.{places}f}"


def _slices(slices: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of the slices that were measured."""
    return [
        {"title": title, "of": of, "num": num, "caption": caption, "rows": slices[key]}
        for key, title, of, num, caption in SLICES
        if slices.get(key)
    ]


def _size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
