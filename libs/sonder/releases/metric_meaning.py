"""Which way a metric of a release is better, by its name, and which names are near a mistyped one.

A name is a dotted path; its last part says what is measured, after what only narrows it is taken away (`_at_10`,
`_unseen`, `_level2`, …). Of `stability.<what>.<of whom>` it is the second part. Counts, shares of a population,
baselines and settings have no better way: nothing is said of them.
Limits: a name that is not listed here has no direction; a consumer says `better: higher` or `lower` then.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Literal

Direction = Literal["higher", "lower"]
_NARROWING = re.compile(r"_(at_\d+|unseen|level\d+|\d+d_ago|p\d+|raw|published|events|same_moment)$")
_BASELINES = ("retrieval.popularity", "retrieval.item_knn")  # what they reach is no merit of a release
_HIGHER = (
    *("hr", "ndcg", "recall", "mrr", "p90_coverage"),
    *("auc", "pr_auc", "macro_auc", "weighted_auc", "precision", "top_decile_lift"),
    *("gini", "spearman", "top_decile_share", "deviance_explained"),
    *("user_cosine", "neighbour_overlap", "user_neighbour_overlap", "stale_index_overlap", "item_alignment_cosine"),
    *("cluster_stability", "cluster_ari_department", "cluster_ari_leaf", "share_of_best"),
    *("interest_purity", "interest_precision", "interest_completeness", "interest_completeness_weighted"),
    *("lifecycle_agreement", "lifecycle_balanced_agreement", "lifecycle_kappa"),
)
_LOWER = (
    *("hide_rate", "hide_lift", "ece", "log_loss", "brier", "calibration_error", "deviance", "mean_absolute_error"),
    *("affinity_ece", "affinity_brier", "forecast_mae", "gap_to_attainable"),
    *("users_moved", "lifecycle_churn", "cluster_churn", "audience_churn", "score_psi"),
    *("quarantined", "cold"),
)
BETTER: dict[str, Direction] = {**dict.fromkeys(_HIGHER, "higher"), **dict.fromkeys(_LOWER, "lower")}


def better(metric: str) -> Direction | None:
    """The better way of a metric; None where there is none, or none is known."""
    parts = metric.split(".")
    if parts[0] == "coverage":
        return "higher"
    if metric.startswith(_BASELINES):
        return None
    return BETTER.get(_stem(parts[1] if parts[0] == "stability" and len(parts) > 1 else parts[-1]))


def _stem(name: str) -> str:
    while name not in BETTER and (found := _NARROWING.search(name)):
        name = name[: found.start()]
    return name


def near_names(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Known names that `name` may have meant: by spelling, then by the same last part."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    last = name.rsplit(".", 1)[-1]
    return [*close, *(other for other in names if other.rsplit(".", 1)[-1] == last and other not in close)][:most]
