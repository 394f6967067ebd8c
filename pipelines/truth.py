"""Compare a build of a synthetic world with the truth that the world wrote beside its events.

The keys are `truth.*`: purity and completeness of interests, agreement of lifecycle, and for each score the AUC of the
true probability, which knows hidden states, and the one that an observer of the events alone can attain.
"""

from __future__ import annotations

import math
import posixpath
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.lifecycle import thresholds_of
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder
from sonder.evaluation.truth import (
    assign_to_medoids,
    cluster_agreement,
    interest_agreement,
    interests_between,
    lifecycle_agreement,
    score_against_best,
    true_lifecycle,
)
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.segments.growth import settled_from
from sonder.segments.lifecycle import COLD, STATES
from sonder.segments.moments import states_at
from sonder.segments.thresholds import LifecycleThresholds

PAST_DAYS = (14, 28, 42)  # before the end of the log, on which the lifecycle is compared too
INTEREST_DAYS = 30  # interests recovered at the end of the log are compared with those that held this long before


def find_truth(config: SonderConfig) -> Folder | None:
    """The truth of a synthetic world lies beside its `events/` folder; None for any real log."""
    if len(config.events.paths) != 1:
        return None
    log = Folder.at(config.events.paths[0])
    truth = Folder(log.fs, posixpath.join(posixpath.dirname(log.path), "truth"))
    return truth if (truth / "interests.parquet").exists() else None


def measure_against_truth(
    truth: Folder, release: Folder, timelines: Timelines, vocabulary: Vocabulary, encoder: Encoder, *, as_of_us: int
) -> dict[str, float]:
    """Flat `truth.*` metrics of a staged release."""
    return {
        **_interests(truth, release, timelines, vocabulary, encoder, as_of_us),
        **_lifecycle(truth, release, as_of_us),
        **past_lifecycle(truth, thresholds_of(release), timelines, as_of_us),
        **_clusters(truth, release, as_of_us),
        **_scores(truth, release),
    }


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _parts(folder: Folder) -> pa.Table:
    return pa.concat_tables([(folder / name).read_table() for name in folder.files() if name.endswith(".parquet")])


def _interests(
    truth: Folder, release: Folder, timelines: Timelines, vocabulary: Vocabulary, encoder: Encoder, as_of_us: int
) -> dict[str, float]:
    recent = timelines.between(as_of_us - INTEREST_DAYS * MICROSECONDS_PER_DAY, as_of_us)
    assigned = assign_to_medoids(recent, _parts(release / "interests"), encoder.item_vectors, vocabulary)
    end = _moment(as_of_us)
    held = interests_between(
        _frame((truth / "interests.parquet").read_table()), end - timedelta(days=INTEREST_DAYS), end
    )
    found = interest_agreement(assigned, held)
    return {f"truth.interest_{name}": value for name, value in found.items() if name != "users"}


def _lifecycle(truth: Folder, release: Folder, as_of_us: int) -> dict[str, float]:
    recovered = _frame(_parts(release / "segments")).select("user_id", state="lifecycle")
    thresholds = (release / "segments" / "thresholds.json").read_json()
    true = true_lifecycle(
        _frame((truth / "lifecycle.parquet").read_table()),
        as_of=_moment(as_of_us),
        new_days=thresholds["new_days"],
        dormant_days=thresholds["dormant_days"],
    )
    found, _ = lifecycle_agreement(recovered, true)
    return {f"truth.lifecycle_{name}": value for name, value in found.items() if name != "users"}


def past_lifecycle(
    truth: Folder, thresholds: LifecycleThresholds, timelines: Timelines, as_of_us: int
) -> dict[str, float]:
    """Agreement on past days, each asked from what lies before it; a day for which the log is too young is absent."""
    first_us = int(timelines.times_us.min(initial=as_of_us))
    periods = _frame((truth / "lifecycle.parquet").read_table())
    found: dict[str, float] = {}
    for days in PAST_DAYS:
        day_us = as_of_us - days * MICROSECONDS_PER_DAY
        if day_us < settled_from(first_us, thresholds.dormant_days):
            continue
        states = states_at(timelines.offsets, timelines.times_us, np.array([day_us]), thresholds)[:, 0]
        names = pl.Series(np.array(STATES, dtype=object)[states].tolist(), dtype=pl.String)
        recovered = pl.DataFrame({"user_id": pl.Series(timelines.user_ids), "state": names})
        true = true_lifecycle(
            periods, as_of=_moment(day_us), new_days=thresholds.new_days, dormant_days=thresholds.dormant_days
        )
        metrics, _ = lifecycle_agreement(recovered.filter(pl.col("state") != STATES[COLD]), true)
        found[f"truth.lifecycle_agreement_{days}d_ago"] = metrics["agreement"]
    return found


def _clusters(truth: Folder, release: Folder, as_of_us: int) -> dict[str, float]:
    """Behaviour clusters beside the department and the leaf of each user's heaviest interest."""
    assigned = _frame(_parts(release / "clusters")).select("user_id", "cluster_id")
    end = _moment(as_of_us)
    held = interests_between(
        _frame((truth / "interests.parquet").read_table()), end - timedelta(days=INTEREST_DAYS), end
    )
    found = {"department": cluster_agreement(assigned, held, depth=1), "leaf": cluster_agreement(assigned, held)}
    return {f"truth.cluster_ari_{level}": ari for level, ari in found.items() if not math.isnan(ari)}


def _scores(truth: Folder, release: Folder) -> dict[str, float]:
    best = _frame((truth / "scores.parquet").read_table())
    observed_file = truth / "attainable.parquet"  # worlds of earlier versions have none
    observed = _frame(observed_file.read_table()) if observed_file.exists() else None
    folder = release / "scores" / "test"
    found: dict[str, float] = {}
    for name in [child.name.removesuffix(".parquet") for child in folder.children()]:
        if name not in best.columns:
            continue
        tested = _frame((folder / f"{name}.parquet").read_table())
        cutoff_days = tested["cutoff"].dt.round("1d").unique()  # the log ends minutes before its last midnight
        is_asked = pl.col("cutoff").dt.round("1d").is_in(cutoff_days.implode())
        known, told = (
            None if table is None else table.filter(is_asked).select("user_id", probability=name)
            for table in (best, observed)
        )
        assert known is not None
        compared = score_against_best(tested.select("user_id", "label", probability="value"), known, told)
        found |= {
            f"truth.{name}.{metric}": value
            for metric, value in compared.items()
            if value is not None and metric != "users"
        }
    return found
