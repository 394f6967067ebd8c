"""Agreement with the synthetic world's own truth: what no real log can tell.

All functions are pure and take tables; category paths are `a/b/c`, `depth` cuts them to their first levels.
true_interests   [user_id, category, weight, from, to]; null `from`: always had it, null `to`: still has it
periods          [user_id, tier, state, began, from, to]: the hidden life of each user, one row per period
assignments      [user_id, rank, category]: one row per event of a recovered interest, with its item's true category
interests        sonder.interests INTEREST_SCHEMA
Limits: events are assigned to the nearest medoid of their user, which is how an interest is used when it is served;
the clustering itself may have grouped a few of them otherwise.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, SupportsFloat

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.evaluation.classification import evaluate_score
from sonder.events.contract import Col
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.segments.cluster_matching import adjusted_rand_index, contingency

CHUNK_EVENTS = 16_384


def assign_to_medoids(
    timelines: Timelines, interests: pa.Table, vectors_ID: NDArray[np.float32], vocabulary: Vocabulary
) -> pl.DataFrame:
    """Give each wanted event of a known item to the nearest medoid of its user -> [user_id, rank, category].

    Users without interests are absent; a tie goes to the stronger interest.
    """
    is_usable = (vocabulary.weight_of(timelines.actions) > 0) & (timelines.items >= 0)
    is_usable[is_usable] = np.any(vectors_ID[timelines.items[is_usable]] != 0, axis=1)
    medoids_UR = _medoids(timelines.user_ids, interests)
    events = timelines.keep(is_usable)
    events = events.keep(medoids_UR[events.user_rows, 0] >= 0)
    users = events.user_rows
    ranks = np.empty(events.num_events, dtype=np.int16)
    for start in range(0, events.num_events, CHUNK_EVENTS):
        part = slice(start, start + CHUNK_EVENTS)
        candidates_ER = medoids_UR[users[part]]
        cosines = np.einsum("ed,erd->er", vectors_ID[events.items[part]], vectors_ID[candidates_ER])
        cosines[candidates_ER < 0] = -np.inf
        ranks[part] = cosines.argmax(axis=1) + 1
    categories = vocabulary.items.column(Col.CATEGORY).take(pa.array(events.items))
    user_ids = timelines.user_ids.take(pa.array(users))
    return pl.DataFrame({"user_id": pl.Series(user_ids), "rank": ranks, "category": pl.Series(categories)})


def _medoids(user_ids: pa.Array, interests: pa.Table) -> NDArray[np.int32]:
    """item_index of the medoid of each user and rank [U, R], -1 where there is none."""
    rows = pl.DataFrame({"user_id": pl.Series(user_ids)}).with_row_index("row")
    known = pl.DataFrame(interests.select(["user_id", "rank", "medoid_index"])).join(rows, on="user_id")
    most = known["rank"].max() if len(known) else 1
    assert isinstance(most, int)
    medoids_UR = np.full((len(user_ids), most), -1, dtype=np.int32)
    medoids_UR[known["row"].to_numpy(), known["rank"].to_numpy() - 1] = known["medoid_index"].to_numpy()
    return medoids_UR


def interests_between(true_interests: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """The true interests that held at some moment of [start, end)."""
    begins_in_time = pl.col("from").is_null() | (pl.col("from") < end)
    ends_in_time = pl.col("to").is_null() | (pl.col("to") > start)
    return true_interests.filter(begins_in_time & ends_in_time)


def interest_agreement(
    assignments: pl.DataFrame, true_interests: pl.DataFrame, *, depth: int | None = None
) -> dict[str, float]:
    """purity, precision, completeness of recovered interests; all NaN if there are none.

    purity        share of the events that lie in their interest's dominant category
    precision     share of recovered interests whose dominant category is a true interest of that user
    completeness  share of true interests that are the dominant category of a recovered interest of that user, among
                  the users with recovered interests; `completeness_weighted` weighs each by the truth's own weight
    """
    cut = _cut_category(depth)
    sizes = assignments.drop_nulls("category").group_by("user_id", "rank", cut.alias("category")).len("events")
    dominant = sizes.sort(["events", "category"], descending=[True, False]).group_by("user_id", "rank").first()
    truth = true_interests.group_by("user_id", cut.alias("category")).agg(pl.col("weight").sum())
    found = dominant.select("user_id", "category").unique()
    asked = truth.join(found.select("user_id").unique(), on="user_id", how="semi")
    recovered = asked.join(found, on=["user_id", "category"], how="semi")
    correct = dominant.join(truth, on=["user_id", "category"], how="semi")
    return {
        "purity": _ratio(dominant["events"].sum(), sizes["events"].sum()),
        "precision": _ratio(len(correct), len(dominant)),
        "completeness": _ratio(len(recovered), len(asked)),
        "completeness_weighted": _ratio(_sum(recovered["weight"]), _sum(asked["weight"])),
        "users": float(found["user_id"].n_unique()),
    }


def cluster_agreement(assigned: pl.DataFrame, true_interests: pl.DataFrame, *, depth: int | None = None) -> float:
    """Adjusted Rand index of [user_id, cluster_id] and the users' heaviest true interest; NaN without common users.

    A user has several interests and one cluster, so 1 is out of reach; 0 is chance.
    """
    weights = true_interests.group_by("user_id", _cut_category(depth).alias("category")).agg(pl.col("weight").sum())
    heaviest = weights.sort(["weight", "category"], descending=[True, False]).group_by("user_id").first()
    joined = assigned.drop_nulls("cluster_id").join(heaviest, on="user_id")
    if joined.is_empty():
        return float("nan")
    clusters, categories = joined["cluster_id"].to_numpy(), joined["category"].rank("dense").to_numpy()
    sizes = (int(clusters.max()) + 1, int(categories.max()) + 1)
    return adjusted_rand_index(contingency(clusters, categories.astype(np.int64), sizes))


def lifecycle_agreement(recovered: pl.DataFrame, truth: pl.DataFrame) -> tuple[dict[str, float], pl.DataFrame]:
    """Compare [user_id, state] with the truth's [user_id, state] -> metrics, confusion [true, recovered, users].

    agreement           share of common users with the same state
    balanced_agreement  mean over true states of the share recovered: a rare state counts like a common one
    kappa               Cohen's: agreement beyond what the two mixes alone would give; NaN if that is already all
    """
    joined = truth.select("user_id", true="state").join(recovered.select("user_id", recovered="state"), on="user_id")
    confusion = joined.group_by("true", "recovered").len("users").sort("true", "recovered")
    same = pl.col("true") == pl.col("recovered")
    per_state = joined.group_by("true").agg(same.mean().alias("share"))
    agreement = _ratio(joined.filter(same).height, joined.height)
    mixes = (
        joined["true"]
        .value_counts(name="t")
        .join(joined["recovered"].value_counts(name="r"), left_on="true", right_on="recovered")
    )
    by_chance = _ratio(_sum(mixes["t"].cast(pl.Float64) * mixes["r"]), float(joined.height**2))
    balanced = _ratio(_sum(per_state["share"]), len(per_state))
    kappa = _ratio(agreement - by_chance, 1 - by_chance)
    metrics = {"agreement": agreement, "balanced_agreement": balanced, "kappa": kappa, "users": float(joined.height)}
    return metrics, confusion


def true_lifecycle(periods: pl.DataFrame, *, as_of: datetime, new_days: float, dormant_days: float) -> pl.DataFrame:
    """Sonder's states read off the hidden life instead of the events -> [user_id, state]; who never joined is absent.

    The first that holds: dormant (away or gone for dormant_days), new (joined within new_days), resurrected (returned
    within new_days from an absence of dormant_days), else the tier. A user who left yesterday keeps the tier: by
    Sonder's definition only time makes dormant, so the best a log can do is not marked wrong.
    """
    lived = periods.filter(pl.col("from") < as_of).sort("user_id", "from")
    absence = pl.col("to").sub(pl.col("from")).shift(1).over("user_id")  # of the period before
    age = pl.lit(as_of) - pl.col("from")
    recent = age < pl.duration(days=new_days)
    returned = (pl.col("began") == "returned") & recent & (absence >= pl.duration(days=dormant_days))
    return (
        lived.with_columns(
            is_new=(pl.col("began") == "joined") & recent,
            is_back=returned,
            is_gone=(pl.col("state") != "active") & (age >= pl.duration(days=dormant_days)),
        )
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("is_new").any(), pl.col("is_back").any(), pl.col("is_gone", "tier").last())
        .select(
            "user_id",
            state=pl.when("is_gone")
            .then(pl.lit("dormant"))
            .when("is_new")
            .then(pl.lit("new"))
            .when("is_back")
            .then(pl.lit("resurrected"))
            .otherwise("tier"),
        )
    )


def score_against_best(
    scored: pl.DataFrame, truth: pl.DataFrame, attainable: pl.DataFrame | None = None
) -> dict[str, float | None]:
    """AUC of a score beside that of the true probability, and beside what can be known of it from the events.

    `scored` is [user_id, label, probability], the others [user_id, probability]; users of both are compared, with
    `attainable` those of all three for its two numbers.
    share_of_best is (auc - 0.5) / (auc_of_truth - 0.5): 1 leaves nothing to learn. gap_to_attainable is attainable_auc
    minus our AUC on the same users. None where an AUC is undefined.
    """
    joined = scored.join(truth.select("user_id", true="probability"), on="user_id")
    labels, own, best = (joined[name].to_numpy() for name in ("label", "probability", "true"))
    auc, auc_of_truth = _auc(labels, own), _auc(labels, best)
    known = auc is not None and auc_of_truth is not None and auc_of_truth != 0.5
    found = {
        "auc": auc,
        "auc_of_truth": auc_of_truth,
        "share_of_best": (auc - 0.5) / (auc_of_truth - 0.5) if known and auc and auc_of_truth else None,
        "mean_absolute_error": math.fsum(np.abs(own - best)) / len(joined) if len(joined) else None,
        "users": float(len(joined)),
    }
    if attainable is None:
        return found
    observed = scored.join(attainable.select("user_id", told="probability"), on="user_id")
    labels, own, told = (observed[name].to_numpy() for name in ("label", "probability", "told"))
    auc, attainable_auc = _auc(labels, own), _auc(labels, told)
    gap = attainable_auc - auc if auc is not None and attainable_auc is not None else None
    return found | {"attainable_auc": attainable_auc, "gap_to_attainable": gap}


def _auc(labels: NDArray[Any], given: NDArray[Any]) -> float | None:
    return evaluate_score(labels, given, num_resamples=0).auc


def _cut_category(depth: int | None) -> pl.Expr:
    category = pl.col("category")
    return category if depth is None else category.str.split("/").list.head(depth).list.join("/")


def _sum(values: pl.Series) -> float:
    """Rounded once: a join or a group has its rows in another order each time, and a plain sum its last digit."""
    return math.fsum(values.to_list())


def _ratio(part: SupportsFloat, whole: SupportsFloat) -> float:
    return float(part) / float(whole) if float(whole) else float("nan")
