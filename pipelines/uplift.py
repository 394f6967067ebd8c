"""`sonder uplift`: what a randomised treatment of the log changed, for whom, and a predicted uplift for every user.

Two passes over the history's buckets. `ExperimentBucket` takes the users of the two arms who had an event before the
treatment: features strictly before it, the outcome in [at, at + N days). Users who first came after it are left out,
because the treatment may have brought them. `PredictBucket` predicts for everybody from the events before the
release's as_of. Between them, in this process: is the draw believable, the model from one half of the users, its
worth on the other half.

Writes uplift/<name>/{manifest.json, model/, test.parquet, users/bucket=NNN/part-0.parquet}, whole or not at all; the
same question over the same release is not answered again. test.parquet: user_id, treated, outcome, uplift of the
held-out half; users: user_id, uplift.
Limits: the experiment's rows are in memory at once. No embedding is read: its weights may have seen the outcome. Users
change after a treatment; what is predicted for today supposes that the effect is that of then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.segment import read_sample
from sonder.core import telemetry
from sonder.core.config import SonderConfig, UpliftConfig
from sonder.core.errors import ConfigurationError, DataError
from sonder.core.ids import digest_json, unit_interval
from sonder.core.storage import Folder, publish, read_manifest
from sonder.core.workspace import Workspace
from sonder.events.contract import ATTRIBUTES_TYPE
from sonder.history.snapshot import read_timelines, read_users
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.releases.artefacts import Release, served_release
from sonder.scoring.features import compute_features
from sonder.scoring.qini import Experiment
from sonder.scoring.randomisation import check_randomisation
from sonder.scoring.specification import FeatureSpec, bind, derive_spec
from sonder.scoring.uplift import BASELINE, TreatedRows, UpliftModel, fit_learner, fit_uplift
from sonder.scoring.uplift_quality import uplift_quality, verdict

SPLIT_KEY = "sonder/uplift/split/1/"
MIN_IN_ARM = 100  # users of each arm, in each half
MIN_OF_A_KIND = 10  # of a binary outcome, in each half
SMALL_EVENTS = 20_000_000  # up to these the buckets are read in this process


@dataclass(frozen=True)
class TreatedUsers:
    """The experiment with the ids of its users."""

    user_ids: pl.Series
    rows: TreatedRows


def learn_uplift(
    config: SonderConfig, name: str | None = None, *, release_id: str | None = None, num_workers: int | None = None
) -> dict[str, Any]:
    """Learn one declared treatment over a release (the served one if not named) -> its manifest."""
    workspace, asked = Workspace.at(config.workspace), asked_uplift(config, name)
    release = Release.open(workspace, release_id or served_release(workspace))
    identity = digest_json([asked.model_dump(mode="json"), release.id, config.seed])
    final, staged = workspace.uplift / asked.name, workspace.staging(f"uplift-{asked.name}-{identity}")
    if final.is_published() and read_manifest(final)["identity"] == identity:
        return read_manifest(final)
    history, vocabulary = workspace.history(release.manifest.snapshot), Vocabulary.load(release.items)
    facts = read_manifest(history)
    check_plan(asked, vocabulary, facts)
    num_events = sum(int(entry["events"]) for entry in facts["buckets"])
    workers = 0 if num_workers is None and num_events <= SMALL_EVENTS else num_workers
    with telemetry.stage("uplift", uplift=asked.name, release=release.id) as counts:
        spec = derive_spec(
            read_sample(history, vocabulary),
            vocabulary,
            first_us=int(facts["first_event_us"]),
            cutoff_us=asked.at_us,
            embedding_dim=0,
        )
        arguments = {"history": history.uri, "items": release.items.uri, "staged": staged.uri, "spec": spec.to_dict()}
        buckets = bucket_numbers(history)
        experiment_of = arguments | {"asked": asked.model_dump(mode="json")}
        found = over_buckets(ExperimentBucket, experiment_of, buckets, num_workers=workers)
        told = _learn(asked, _read_experiment(staged, buckets, asked.share), spec, staged, seed=config.seed)
        predict_of = arguments | {"as_of_us": release.manifest.as_of_us}
        predicted = over_buckets(PredictBucket, predict_of, buckets, num_workers=workers)
        counts.update(users=sum(part["users"] for part in predicted), qini=told["quality"]["qini"])
    manifest = {
        "identity": identity,
        "uplift": asked.model_dump(mode="json"),
        "at": iso_time(asked.at_us),
        "protocol": f"half of the users by digest, features before {iso_time(asked.at_us)}, outcome within "
        f"{asked.outcome.within_days} days",
        "release": release.id,
        "snapshot": release.manifest.snapshot,
        "as_of": iso_time(release.manifest.as_of_us),
        "left_out": {key: sum(part[key] for part in found) for key in ("other_arm", "no_event_before")},
        "users": sum(part["users"] for part in predicted),
        **told,
    }
    (staged / "experiment").remove()
    final.remove()
    publish(staged, final, manifest)
    return read_manifest(final)


def asked_uplift(config: SonderConfig, name: str | None) -> UpliftConfig:
    """The declared treatment of that name, the only one if none is named."""
    names = [uplift.name for uplift in config.uplift]
    chosen = names[0] if name is None and len(names) == 1 else name
    if chosen not in names:
        raise ConfigurationError(
            "No uplift is declared" if not names else f"--name {name}: no such uplift" if name else "--name is needed",
            expected=f"one of {', '.join(names)}" if names else "a section `uplift` in the configuration",
            do="docs/targeting.md shows one.",
        )
    return config.uplift[names.index(chosen)]


def check_plan(asked: UpliftConfig, vocabulary: Vocabulary, history: dict[str, Any]) -> None:
    """Refuse a treatment that this log cannot tell of."""
    if history["is_ordinal"]:
        raise DataError("The log has order but no time", expected="timestamps: days mean nothing here")
    if "user_table" not in history:
        raise DataError("The log came without a user table", expected="the arm of each user there", do="Build again.")
    action = asked.outcome.action
    if action is not None and action not in vocabulary.actions:
        raise ConfigurationError(f"No action {action!r} in the log", expected=f"one of {', '.join(vocabulary.actions)}")
    end_us = asked.at_us + asked.outcome.within_days * MICROSECONDS_PER_DAY
    first_us, last_us = int(history["first_event_us"]), int(history["last_event_us"])
    if not first_us + MICROSECONDS_PER_DAY <= asked.at_us or end_us > last_us + 1:
        raise ConfigurationError(
            f"Uplift {asked.name!r} asks for the outcome of {iso_time(asked.at_us)} to {iso_time(end_us)}",
            expected=f"a window after a day of history and inside the log: {iso_time(first_us)} to {iso_time(last_us)}",
            do="Correct `at` or `within_days`, or wait until the window is over.",
        )


class ExperimentBucket:
    """The bucket task of the first pass: features before the treatment, arm and outcome."""

    def __init__(self, history: str, items: str, staged: str, spec: dict[str, Any], asked: dict[str, Any]) -> None:
        self.history, self.staged = Folder.at(history), Folder.at(staged)
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.bound = bind(FeatureSpec.from_dict(spec), self.vocabulary)
        self.asked = UpliftConfig.model_validate(asked)

    def __call__(self, bucket: int) -> dict[str, int]:
        done = self.staged / "experiment" / f"bucket={bucket:03d}.json"
        if not done.exists():
            timelines = read_timelines(self.history, self.vocabulary, [bucket])
            arms = arms_of(read_users(self.history, bucket), timelines.user_ids, self.asked)
            was_there = timelines.before(self.asked.at_us).lengths > 0
            rows = np.flatnonzero((arms >= 0) & was_there)
            chosen = timelines.take(rows)
            features = compute_features(self.bound, chosen, cutoff_us=self.asked.at_us)
            outcomes = outcomes_of(self.asked, chosen, self.vocabulary)
            flat = pa.array(np.ascontiguousarray(features).ravel(), pa.float32())
            table = pa.table(
                {
                    "user_id": chosen.user_ids.cast(pa.string()),
                    "treated": pa.array(arms[rows] == 1),
                    "outcome": pa.array(outcomes, pa.float64()),
                    "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
                }
            )
            part_file(self.staged / "experiment", bucket).write_table(table)
            done.write_json(
                {"other_arm": int((arms < 0).sum()), "no_event_before": int(((arms >= 0) & ~was_there).sum())}
            )
        counts: dict[str, int] = done.read_json()
        return counts


class PredictBucket:
    """The bucket task of the second pass: the uplift of everybody with an event before as_of."""

    def __init__(self, history: str, items: str, staged: str, spec: dict[str, Any], as_of_us: int) -> None:
        self.history, self.staged, self.as_of_us = Folder.at(history), Folder.at(staged), as_of_us
        self.vocabulary = Vocabulary.load(Folder.at(items))
        self.bound = bind(FeatureSpec.from_dict(spec), self.vocabulary)
        self.model = UpliftModel.load(self.staged / "model")

    def __call__(self, bucket: int) -> dict[str, int]:
        file = part_file(self.staged / "users", bucket)
        if not file.exists():
            timelines = read_timelines(self.history, self.vocabulary, [bucket])
            known = timelines.take(np.flatnonzero(timelines.before(self.as_of_us).lengths > 0))
            uplift = self.model.predict(compute_features(self.bound, known, cutoff_us=self.as_of_us))
            ids = known.user_ids.cast(pa.string())
            file.write_table(pa.table({"user_id": ids, "uplift": pa.array(uplift, pa.float64())}))
        return {"users": file.read_table(["user_id"]).num_rows}


def arms_of(users: pa.Table, user_ids: pa.Array, asked: UpliftConfig) -> NDArray[np.int64]:
    """1 treated, 0 control, -1 neither, for each user id [U]."""
    table = users.select(["user_id", "attributes"])
    frame = pl.from_arrow(table.set_column(1, "attributes", table.column("attributes").cast(ATTRIBUTES_TYPE)))
    assert isinstance(frame, pl.DataFrame)
    found = (
        frame.explode("attributes")
        .unnest("attributes")
        .filter(pl.col("name") == asked.attribute)
        .select("user_id", arm=pl.col("value").replace_strict({asked.control: 0, asked.treated: 1}, default=-1))
    )
    ids = pl.DataFrame({"user_id": pl.Series(user_ids.to_pylist(), dtype=pl.String)})
    joined = ids.join(found, on="user_id", how="left", maintain_order="left")
    return joined["arm"].fill_null(-1).cast(pl.Int64).to_numpy()


def outcomes_of(asked: UpliftConfig, timelines: Timelines, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """What came true in [at, at + N days) [U]: 0 or 1 of an action, or the sum of values."""
    end_us = asked.at_us + asked.outcome.within_days * MICROSECONDS_PER_DAY
    window = timelines.between(asked.at_us, end_us)
    if asked.outcome.action is not None:
        window = window.keep(window.actions == vocabulary.actions.index(asked.outcome.action))
    if not asked.outcome.value:
        return (window.lengths > 0).astype(np.float64)
    values = np.nan_to_num(window.values, nan=0.0, posinf=0.0, neginf=0.0)
    return np.bincount(window.user_rows, values, minlength=timelines.num_users).astype(np.float64)


def _learn(asked: UpliftConfig, users: TreatedUsers, spec: FeatureSpec, staged: Folder, *, seed: int) -> dict[str, Any]:
    """Check, fit on one half, judge on the other; leaves the model and the held-out half in the staging folder."""
    rows = users.rows
    is_test = unit_interval(users.user_ids, SPLIT_KEY + asked.name) < 0.5
    _check_counts(asked, rows.experiment, is_test)
    columns = tuple(description for _, description in spec.columns)
    drawn = check_randomisation(rows.features, rows.experiment.treated, share=asked.share, columns=columns, seed=seed)
    if drawn.refusals:
        raise DataError(
            f"The treatment of uplift {asked.name!r} does not look randomised: {'; '.join(drawn.refusals)}",
            expected="arms that were drawn at random and reached the log whole",
            do="Look at the assignment and at `attribute`, `at`, `share`; an effect read from these arms is not one.",
        )
    train, test = rows.take(np.flatnonzero(~is_test)), rows.take(np.flatnonzero(is_test))
    model = fit_uplift(train, seed=seed)
    model.save(staged / "model")
    uplift = model.predict(test.features)
    baseline = fit_learner(BASELINE, train, seed=seed).predict(test.features)
    quality = uplift_quality(test.experiment, uplift, baseline, seed=seed)
    held_out = {
        "user_id": users.user_ids.filter(pl.Series(is_test)).to_arrow(),
        "treated": pa.array(test.experiment.treated),
        "outcome": pa.array(test.experiment.outcomes),
        "uplift": pa.array(uplift),
    }
    (staged / "test.parquet").write_table(pa.table(held_out))
    return {
        "randomisation": drawn.to_dict(),
        "training_users": len(train.features),
        "cross_fitted_qini": dict(model.cross_fitted),
        "slope": model.slope,
        "quality": quality,
        "verdict": verdict(quality),
    }


def _check_counts(asked: UpliftConfig, experiment: Experiment, is_test: NDArray[np.bool_]) -> None:
    """Refuse an experiment too small to learn from or to judge by."""
    for half in (is_test, ~is_test):
        num_users, num_treated = int(half.sum()), int(experiment.treated[half].sum())
        happened = int((experiment.outcomes[half] != 0).sum())
        rarer = happened if asked.outcome.value else min(happened, num_users - happened)
        if min(num_treated, num_users - num_treated) < MIN_IN_ARM or rarer < MIN_OF_A_KIND:
            raise DataError(
                f"Uplift {asked.name!r} has a half of {num_treated} treated and {num_users - num_treated} controls, "
                f"the outcome came true for {happened}",
                expected=f"{MIN_IN_ARM} users of each arm and {MIN_OF_A_KIND} of each outcome, in each half",
                do="Treat more users, or name a longer window.",
            )


def _read_experiment(staged: Folder, buckets: list[int], share: float) -> TreatedUsers:
    table = pa.concat_tables([part_file(staged / "experiment", bucket).read_table() for bucket in buckets])
    table = table.combine_chunks()
    if not table.num_rows or len(table.column("treated").unique()) < 2:
        raise DataError(
            f"{table.num_rows} users of the two arms had an event before the treatment, all of one arm or none",
            expected="users of both arms",
            do="Look at the values of `control` and `treated`: attributes are text as in the user table.",
        )
    width = table.schema.field("features").type.list_size
    features = table.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    experiment = Experiment(table.column("outcome").to_numpy(), table.column("treated").to_numpy())
    ids = pl.Series(table.column("user_id").to_pylist(), dtype=pl.String)
    return TreatedUsers(ids, TreatedRows(features.reshape(table.num_rows, width), experiment, share))
