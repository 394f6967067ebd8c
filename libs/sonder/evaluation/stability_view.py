"""What moved since the parent, as the report shows it: `stability_view` turns `report/stability.json` into rows.

Every row says what was compared: the same moment (both releases read the same events, so what differs the training did)
or as published (each release at its own end, so new events and training together).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sonder.evaluation.stability import MOVED, K

SAME_MOMENT, PUBLISHED = "same moment", "as published"
_MOVEMENTS = (
    ("same_moment", "Training alone"),
    ("raw", "Training alone, had it not been aligned"),
    ("events", "New events alone, by the parent's encoder"),
    ("published", "Both together, as published"),
)
_OVERLAPS = (
    (f"neighbour_overlap_at_{K}", f"A user's {K} nearest items, each release in its own space"),
    (f"user_neighbour_overlap_at_{K}", f"A user's {K} nearest users among those compared"),
    (f"stale_index_overlap_at_{K}", "New user vectors asked of the parent's items"),
    (f"stale_index_overlap_at_{K}_raw", "The same, had they not been aligned"),
)
_CHURNS = (("lifecycle", "Lifecycle state"), ("cluster", "Behaviour cluster"))
_PSI_LARGE, _PSI_SOME = 0.25, 0.1


def stability_view(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of each table; `found` is of a build that has a parent and users in common with it."""
    movement, churn = found["movement"], found["churn"]
    return {
        "parent": found["parent"],
        "users": found["users"],
        "moment": found["moment"][:10],
        "as_of": found["as_of"][:10],
        "moved_below": MOVED,
        "movements": [
            {
                "name": name,
                "own": key == "same_moment",
                "value": movement[key]["quantiles"]["p50"],
                "low": movement[key]["quantiles"]["p05"],
                "moved": movement[key]["moved"],
                "width": 100 * min(max(movement[key]["quantiles"]["p50"], 0.0), 1.0),
            }
            for key, name in _MOVEMENTS
            if key in movement
        ],
        "overlaps": [{"name": name, **found["overlap"][key]} for key, name in _OVERLAPS if key in found["overlap"]],
        "churns": [
            {"name": name, "compared": compared, **churn[key]}
            for kind, name in _CHURNS
            for key, compared in ((f"{kind}_churn_same_moment", SAME_MOMENT), (f"{kind}_churn", PUBLISHED))
            if key in churn
        ],
        "audiences": [{"name": name, **both} for name, both in sorted(found["audiences"].items())],
        "not_compared": sorted(found["audiences_not_compared"].items()),
        "scores": [
            {"name": name, "same": _psi(parts.get("score_psi_same_moment")), "published": _psi(parts.get("score_psi"))}
            for name, parts in found["scores"].items()
        ],
        "alignment": _alignment(found["metrics"]),
    }


def _alignment(metrics: Mapping[str, float]) -> str | None:
    """One sentence of the items, None where they have nothing in common or widths differ."""
    cosine, raw = (metrics.get(f"stability.item_alignment_cosine{part}") for part in ("", "_raw"))
    if cosine is None or raw is None:
        return None
    items = f"{int(metrics['stability.shared_items']):,} items that both releases have learnt"
    if abs(cosine - raw) < 1e-6:
        return f"The {items} have a mean cosine of {cosine:.3f} with what they were; the space was not turned."
    return f"The space was turned onto the parent's by {items}: mean cosine {cosine:.3f}, before {raw:.3f}."


def _psi(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if part is None:
        return None
    psi = part["psi"]
    word = "another population" if psi > _PSI_LARGE else "shifted" if psi > _PSI_SOME else "the same"
    return {"psi": psi, "word": word, "before": part["mean"][0], "after": part["mean"][1]}
