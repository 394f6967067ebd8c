"""What is said of a moment is a function of the events before it: the future is rewritten and nothing may change.

Each view goes from the log through the real history and vocabulary to what a model reads. Two planted mistakes, one
that reads events at the cutoff and one that reads every user's next event, show that the same check catches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipelines.score import train_scores
from pipelines.segment import segment_users
from pipelines.train import train_encoder
from sonder.core.config import EncoderConfig, EvaluationConfig, InterestsConfig, SegmentsConfig, SonderConfig
from sonder.core.ids import unit_interval
from sonder.core.score_config import ScoreTask
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.batching import tokenise
from sonder.encoder.content import item_content
from sonder.encoder.holdout import count_eligible, hold_out
from sonder.encoder.inference import embed_users
from sonder.encoder.specification import derive, summarise
from sonder.encoder.training import Limits, TrainingRun
from sonder.events.contract import EVENT_SCHEMA
from sonder.history.assemble import AssembledBucket, assemble_bucket
from sonder.history.cutoffs import temporal
from sonder.history.item_table import build_vocabulary
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import affinity_table
from sonder.interests.affinity_fit import fit_affinity
from sonder.interests.taxonomy import Taxonomy
from sonder.interests.ward import cluster_interests
from sonder.profiles.user_features import UserFeatures, derive_user_spec
from sonder.scoring.tasks import eligible_users, label_task
from sonder.segments.lifecycle import lifecycle_table
from sonder.segments.thresholds import derive_thresholds
from tests.tiny_log import Event, random_log, write_snapshot

Log = dict[str, list[Event]]
CUTOFF_US = 60 * DAY + 7 * DAY // 19  # inside a day
CUTOFF_DAY = CUTOFF_US / DAY
END_US = 100 * DAY
NUM_ITEMS, WIDTH = 24, 8
CATALOGUE = pa.table(
    {
        "item_id": [f"i{item}" for item in range(NUM_ITEMS + 4)],
        "category": [("garden/tools", "garden/pots", "books", None)[item % 4] for item in range(NUM_ITEMS + 4)],
    }
)
BUY = ScoreTask(name="buy_10d", action="buy", within_days=10)
CHURN = ScoreTask(name="churn_10d", churn=True, within_days=10)


# -- logs and their rewritten futures ------------------------------------------------------------------------------


def base_log(num_users: int = 80) -> Log:
    """Users who are busy on both sides of the cutoff, some with an event one microsecond before it."""
    log = random_log(4, num_users=num_users, num_items=NUM_ITEMS, num_days=90)
    for number, events in enumerate(log.values()):
        if number % 5 == 0:
            events.append((CUTOFF_DAY - 1 / DAY, number % NUM_ITEMS, "buy"))
    return log


def past(events: list[Event]) -> list[Event]:
    return [event for event in events if round(event[0] * DAY) < CUTOFF_US]


def without_future(log: Log) -> Log:
    return {user: past(events) for user, events in log.items()}


def with_another_future(log: Log) -> Log:
    """The same moments, but everything that happens is something else."""
    changed: Log = {}
    for user, events in log.items():
        before = past(events)
        future = [event for event in events if event not in before]
        changed[user] = before + [(day, (item + 7) % NUM_ITEMS, "hide") for day, item, _ in future]
    return changed


def with_more_future(log: Log) -> Log:
    """One event of every user at the cutoff itself, another a week later: of items that hardly existed before."""
    extra: list[Event] = [(CUTOFF_DAY, NUM_ITEMS - 1, "buy"), (CUTOFF_DAY + 7, NUM_ITEMS + 1, "view")]
    return {user: events + extra for user, events in log.items()}


def with_new_people(log: Log) -> Log:
    """Strangers who arrive at the cutoff, come in crowds, and do what nobody did before."""
    arrived = {
        f"new{n:03d}": [(CUTOFF_DAY + step / 8, NUM_ITEMS + n % 5, "return") for step in range(30)] for n in range(60)
    }
    return log | arrived


FUTURES: dict[str, Callable[[Log], Log]] = {
    "removed": without_future,
    "replaced": with_another_future,
    "added": with_more_future,
    "of strangers": with_new_people,
}


class World:
    """A log as `prepare` leaves it. `vocabulary` None: that of the log itself, as a later snapshot would number it."""

    def __init__(self, log: Log, vocabulary: Vocabulary | None = None) -> None:
        bucket = assembled(log)
        self.vocabulary = vocabulary or build_vocabulary([bucket.item_stats], [bucket.label_stats], CATALOGUE, {})
        timelines = Timelines.from_history(bucket.history, self.vocabulary)
        known = [row for row, user in enumerate(timelines.user_ids.to_pylist()) if past(log[user])]
        self.everyone = timelines
        self.timelines = timelines.take(np.array(known))  # who came later is nobody's feature

    @property
    def user_ids(self) -> list[str]:
        ids: list[str] = self.timelines.user_ids.to_pylist()
        return ids


def assembled(log: Log) -> AssembledBucket:
    flat = [(user, *event) for user, events in log.items() for event in events]
    surfaces = [("home", "search", None)[item % 3] for _, _, item, _ in flat]
    columns: dict[str, Any] = {
        "user_id": [user for user, *_ in flat],
        "item_id": [f"i{item}" for _, _, item, _ in flat],
        "action": [action for *_, action in flat],
        "timestamp": [round(day * DAY) for _, day, _, _ in flat],
        "surface": surfaces,
        "value": [day % 5 for _, day, _, _ in flat],
        "log_order": range(len(flat)),
    }
    arrays = [pa.array(columns.get(field.name, [None] * len(flat)), field.type) for field in EVENT_SCHEMA]
    return assemble_bucket(pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA), max_events_per_day=None)


# -- the views: what a model or a reader gets, in names, so that they compare across vocabularies --------------------

View = Callable[[World], Mapping[str, Any]]


def told(timelines: Timelines, vocabulary: Vocabulary) -> dict[str, Any]:
    """Events in the words of the log."""
    items = np.array([*vocabulary.item_ids.to_pylist(), None], dtype=object)
    actions = np.array([*vocabulary.actions, None], dtype=object)
    surfaces = np.array([*vocabulary.surfaces, None], dtype=object)
    return {
        "users": timelines.user_ids.to_pylist(),
        "lengths": timelines.lengths.tolist(),
        "items": items[timelines.items].tolist(),
        "actions": actions[timelines.actions].tolist(),
        "surfaces": surfaces[timelines.surfaces].tolist(),
        "times": timelines.times_us.tolist(),
        "values": timelines.values.tolist(),
    }


def features(world: World) -> Mapping[str, Any]:
    """Every column: of the history, the lifecycle and the interests."""
    vectors = item_vectors(world)
    spec = derive_user_spec(
        world.timelines,
        world.vocabulary,
        first_us=0,
        cutoff_us=CUTOFF_US,
        item_vectors_ID=vectors,
        segments=SegmentsConfig(),
        interests=InterestsConfig(merge_distance=0.6),
    )
    embedding = np.zeros((world.timelines.num_users, WIDTH), np.float32)
    matrix = UserFeatures.of(spec, world.vocabulary, vectors).compute(world.timelines, embedding, as_of_us=CUTOFF_US)
    columns = {name: column.tobytes() for (_, name), column in zip(spec.columns, matrix.T, strict=True)}
    return {"users": world.user_ids, "settings": spec.settings, **columns}


def population(world: World) -> Mapping[str, Any]:
    return {
        task.name: eligible_users(task, world.timelines, world.vocabulary, cutoff_us=CUTOFF_US).tolist()
        for task in (BUY, CHURN)
    }


def labels_that_are_known(world: World) -> Mapping[str, Any]:
    """Of the windows that end at the cutoff: what the newest training rows are taught."""
    start_us = CUTOFF_US - BUY.within_days * DAY
    asked = [
        label_task(task, (task.name,), world.timelines, world.vocabulary, cutoff_us=start_us) for task in (BUY, CHURN)
    ]
    return {"eligible": [who.tolist() for who, _ in asked], "labels": [label.tolist() for _, label in asked]}


def lifecycle(world: World) -> Mapping[str, Any]:
    thresholds = derive_thresholds(world.everyone, end_us=CUTOFF_US, config=SegmentsConfig())
    table = lifecycle_table(world.timelines, as_of_us=CUTOFF_US, thresholds=thresholds)
    return {"thresholds": thresholds, "states": table.to_pylist()}


def item_vectors(world: World) -> np.ndarray[Any, Any]:
    """They belong to the ids; items that nobody wanted before the cutoff have none."""
    ids = pl.Series(world.vocabulary.item_ids.to_pylist())
    vectors = np.stack([unit_interval(ids, f"{d}") for d in range(WIDTH)], axis=1).astype(np.float32) - 0.5
    seen = world.everyone.keep(world.everyone.times_us < CUTOFF_US)
    vectors[~np.isin(np.arange(len(ids)), seen.items)] = 0
    return vectors


def interests(world: World) -> Mapping[str, Any]:
    vectors = item_vectors(world)
    config = InterestsConfig(merge_distance=0.6)
    found = cluster_interests(world.timelines, vectors, world.vocabulary, as_of_us=CUTOFF_US, config=config)
    return {"interests": found.drop_columns(["medoid_index"]).to_pylist()}


def affinities(world: World) -> Mapping[str, Any]:
    """By the catalogue's categories and one of all the rest, with every number fitted before the cutoff."""
    taxonomy = Taxonomy.of_paths(world.vocabulary.items.column("category").fill_null("the rest"))
    fit = {"as_of_us": CUTOFF_US, "horizon_days": 14}
    model = fit_affinity(world.everyone, world.vocabulary, taxonomy, **fit)
    found = affinity_table(world.timelines, world.vocabulary, taxonomy, model, as_of_us=CUTOFF_US, max_affinities=100)
    assert found.num_rows > 0
    return {"model": model, "affinities": found.to_pylist()}


def readable_history(world: World) -> Mapping[str, Any]:
    split = temporal(world.timelines, world.vocabulary, cutoff_us=CUTOFF_US, end_us=END_US)
    return told(split.history, world.vocabulary)


def training_events(world: World) -> Mapping[str, Any]:
    """What the encoder learns from, what validates it, and the dials that follow from both."""
    window: dict[str, Any] = {"cutoff_us": CUTOFF_US, "window_us": 14 * DAY}
    eligible = count_eligible(world.everyone, world.vocabulary, **window)
    holdout = hold_out(world.timelines, world.vocabulary, num_eligible=eligible, **window)
    assert holdout.validation.targets.num_events > 0
    return {
        "eligible": eligible,
        "visible": told(holdout.visible, world.vocabulary),
        "asked from": told(holdout.validation.history, world.vocabulary),
        "asked for": told(holdout.validation.targets, world.vocabulary),
    }


def training_run(world: World) -> TrainingRun:
    """As the training job sets it up, with every dial that the data decides."""
    window: dict[str, Any] = {"cutoff_us": CUTOFF_US, "window_us": 14 * DAY}
    eligible = count_eligible(world.timelines, world.vocabulary, **window)
    holdout = hold_out(world.timelines, world.vocabulary, num_eligible=eligible, **window)
    summary = summarise(holdout.visible, world.vocabulary)
    config = EncoderConfig(dim=WIDTH, max_length=16, num_negatives=32)
    spec = derive(config, EvaluationConfig(), world.vocabulary, summary, reads_time=True, seed=1)
    return TrainingRun(spec, [holdout], summary.targets, content=item_content(world.vocabulary))


def tokens(world: World) -> Mapping[str, Any]:
    """What the encoder learns from and what it reads, as table rows: comparable where the vocabulary is the same."""
    run = training_run(world)
    read = tokenise(world.timelines.before(CUTOFF_US), run.spec)
    kinds = {"trained on": run.tokens, "read": read, "goals": run.goals, "unwanted": run.unwanted}
    rows = {
        f"{kind}, {name}": np.asarray(getattr(arrays, name)).tobytes()
        for kind, arrays in kinds.items()
        for name in arrays.__dataclass_fields__
    }
    return {"spec": run.spec, **rows}


def weights_and_vectors(world: World) -> Mapping[str, Any]:
    run = training_run(world)
    run.fit(Limits(max_epochs=1, patience=1))
    encoder = run.state().encoder(item_content(world.vocabulary))
    return {"weights": encoder.digest, "users": embed_users(encoder, world.timelines, as_of_us=CUTOFF_US).tobytes()}


BY_NAME: tuple[View, ...] = (
    features, population, labels_that_are_known, lifecycle, interests, affinities, readable_history, training_events
)  # fmt: skip
BY_INDEX: tuple[View, ...] = (*BY_NAME, tokens, weights_and_vectors)


def check(view: View, future: Callable[[Log], Log], *, is_same_vocabulary: bool) -> None:
    """The view of the log and of the same log with another future are the same."""
    log = base_log()
    before = World(log)
    after = World(future(log), before.vocabulary if is_same_vocabulary else None)
    assert after.everyone.num_events != before.everyone.num_events or future is with_another_future
    # Named first: pytest explains a failed `==` of two views by a diff, in full where CI is set, and that takes hours.
    is_same = view(after) == view(before)
    assert is_same, f"{view.__name__} sees what comes after its moment"


@pytest.mark.parametrize("future", FUTURES)
@pytest.mark.parametrize("view", BY_INDEX)
def test_another_future_changes_nothing_that_is_said_before_it(view: View, future: str) -> None:
    check(view, FUTURES[future], is_same_vocabulary=True)


@pytest.mark.parametrize("future", FUTURES)
@pytest.mark.parametrize("view", BY_NAME)
def test_nor_does_a_vocabulary_that_was_numbered_later(view: View, future: str) -> None:
    check(view, FUTURES[future], is_same_vocabulary=False)


# -- the check can fail --------------------------------------------------------------------------------------------


def reading_the_cutoff(timelines: Timelines, end_us: int) -> np.ndarray[Any, Any]:
    """`<=` where `<` belongs."""
    return timelines.times_us <= end_us


def reading_one_event_later(timelines: Timelines, end_us: int) -> np.ndarray[Any, Any]:
    """Everything before the cutoff and the first event of each user after it."""
    num_before = timelines.keep(timelines.times_us < end_us).lengths
    places = np.arange(timelines.num_events) - timelines.offsets[:-1][timelines.user_rows]
    return places <= num_before[timelines.user_rows]


@pytest.mark.parametrize("mistake", [reading_the_cutoff, reading_one_event_later])
@pytest.mark.parametrize("view", BY_INDEX)
def test_a_planted_look_into_the_future_is_caught_in_every_view(
    view: View, mistake: Callable[[Timelines, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def before(self: Timelines, cutoff_us: int) -> Timelines:
        return self.keep(mistake(self, cutoff_us))

    def between(self: Timelines, start_us: int, end_us: int) -> Timelines:
        return self.keep((self.times_us >= start_us) & mistake(self, end_us))

    monkeypatch.setattr(Timelines, "before", before)
    monkeypatch.setattr(Timelines, "between", between)
    with pytest.raises(AssertionError, match="sees what comes after its moment"):
        check(view, with_more_future, is_same_vocabulary=True)


# -- the jobs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Log], Log]], dict[str, bytes]]:
    """Train, segment and score for the moment of the cutoff, on a log with this future -> every file, by its name."""
    log = base_log(num_users=500)
    vocabulary = World(log).vocabulary
    sections = {
        "events": {"path": "unused"},
        "evaluation": {"test_days": 10},
        "encoder": {"dim": WIDTH, "max_epochs": 1, "max_length": 16, "num_negatives": 32},
        "scores": [BUY.model_dump(), CHURN.model_dump()],
    }

    def run(future: Callable[[Log], Log]) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("jobs")
        target, config = Folder.at(str(folder / "target")), SonderConfig(workspace=str(folder / "w"), **sections)
        write_snapshot(Workspace.at(config.workspace), "log", World(future(log), vocabulary).timelines, vocabulary)
        encoder, seen_us = target / "encoder", CUTOFF_US - 10 * DAY
        train_encoder(config, "log", encoder, cutoff_us=seen_us, num_workers=0)
        segment_users(config, "log", encoder, target, as_of_us=CUTOFF_US, num_workers=0)
        scored = train_scores(
            config, "log", encoder, target / "scores", end_us=CUTOFF_US, encoder_cutoff_us=seen_us, num_workers=0
        )
        assert list(scored["metrics"]) == ["buy_10d", "churn_10d"]
        return {name: (target / name).read_bytes() for name in target.files()}

    return run


@pytest.mark.slow
def test_the_jobs_write_the_same_bytes_whatever_comes_later(
    run_jobs: Callable[[Callable[[Log], Log]], dict[str, bytes]],
) -> None:
    files = run_jobs(lambda log: log)
    others = run_jobs(lambda log: with_more_future(with_another_future(log)))
    assert {name.split("/")[0] for name in files} == {
        "encoder",
        "vectors",
        "interests",
        "affinities",
        "segments",
        "scores",
    }
    assert others.keys() == files.keys()
    timed = "encoder/encoder.json"  # tells the seconds that training took
    assert [name for name in files if others[name] != files[name] and name != timed] == []
