"""Score heads on a small history: labels counted anew, time kept apart, refusals that stop nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pipelines.score_matrix
import pipelines.score_train
from pipelines.bucket_tasks import over_buckets
from pipelines.score import score_users, train_scores
from pipelines.score_matrix import RowFiles
from pipelines.score_plan import ScorePlan, plan_models
from pipelines.score_rows import PARTS, ModelPlan, ScoreRowsBucket, read_rows
from pipelines.segment import segment_users
from pipelines.train import train_encoder
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.scoring.heads import load_heads, load_refusals
from sonder.scoring.training import SAVE_EVERY, Progress
from tests.pipelines.test_segment import all_bytes
from tests.tiny_log import Event, random_log, timelines_of, vocabulary_of, write_snapshot

END_DAY, DIM = 100, 8
TRAIN_DAYS = (70, 65, 60, 55, 50, 45, 40, 35)
TASKS: list[dict[str, Any]] = [
    {"name": "buy_10d", "action": "buy", "within_days": 10},
    {"name": "rare_10d", "action": "hide", "within_days": 10},  # three users do it
    {"name": "unheard_of", "action": "share", "within_days": 10},
    {"name": "churn_10d", "churn": True, "within_days": 10},
    {"name": "too_long", "action": "buy", "within_days": 60},
]


def make_log() -> dict[str, list[Event]]:
    log = random_log(6, num_users=500, num_items=12, num_days=END_DAY)
    return {
        user: [(day, item, "view" if action == "hide" and row >= 3 else action) for day, item, action in events]
        for row, (user, events) in enumerate(log.items())
    }


LOG = make_log()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SonderConfig:
    """A snapshot `tiny` in three buckets, and an encoder trained on what lies before day 90."""
    folder = tmp_path_factory.mktemp("score")
    settled = SonderConfig.model_validate(
        {
            "workspace": str(folder / "workspace"),
            "events": {"path": "unused"},
            "evaluation": {"test_days": 10},
            "encoder": {"dim": DIM, "max_epochs": 1, "num_negatives": 32},
            "scores": TASKS,
        }
    )
    vocabulary = vocabulary_of([f"c{item % 3}" for item in range(12)])
    write_snapshot(Workspace.at(settled.workspace), "tiny", timelines_of(LOG), vocabulary, num_buckets=3)
    train_encoder(settled, "tiny", encoder_of(settled), cutoff_us=90 * DAY, num_workers=0)
    return settled


def encoder_of(config: SonderConfig) -> Folder:
    return Folder.at(str(Path(config.workspace).parent / "encoder"))


def train(
    config: SonderConfig, target: Path, *, encoder_cutoff_day: int = 90, num_workers: int | None = 0
) -> dict[str, Any]:
    return train_scores(
        config, "tiny", encoder_of(config), Folder.at(str(target)), end_us=END_DAY * DAY,
        encoder_cutoff_us=encoder_cutoff_day * DAY, num_workers=num_workers,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: SonderConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    target = tmp_path_factory.mktemp("scores") / "scores"
    return train(config, target), target


def comes_true(task: str, user: str, cutoff_us: int) -> bool | None:
    """Label of a user at a cutoff by counting through the log; None if the user is not asked."""
    times = [(round(day * DAY), action) for day, _, action in LOG[user]]
    window = [action for time, action in times if cutoff_us <= time < cutoff_us + 10 * DAY]
    if task == "churn_10d":
        was_here = any(cutoff_us - 10 * DAY <= time < cutoff_us for time, _ in times)
        return not window if was_here else None
    wanted = {"buy_10d": "buy", "rare_10d": "hide"}[task]
    return wanted in window if any(time < cutoff_us for time, _ in times) else None


def expected(task: str, cutoff_day: int) -> dict[str, bool]:
    asked = {user: comes_true(task, user, cutoff_day * DAY) for user in LOG}
    return {user: label for user, label in asked.items() if label is not None}


def planned(config: SonderConfig) -> ScorePlan:
    plan = plan_models(
        config,
        "tiny",
        end_us=END_DAY * DAY,
        encoder_cutoff_us=90 * DAY,
        item_vectors_ID=load_encoder(encoder_of(config)).item_vectors,
    )
    assert isinstance(plan, ScorePlan)
    return plan


def make_rows(config: SonderConfig, plan: ScorePlan, target: Path, share: float = 1.0) -> list[dict[str, Any]]:
    place = Workspace.at(config.workspace)
    arguments = {
        "history": place.history("tiny").uri, "items": place.items("tiny").uri, "encoder": encoder_of(config).uri,
        "target": str(target), "models": [model.to_dict() for model in plan.models],
        "share": share,
    }  # fmt: skip
    return over_buckets(ScoreRowsBucket, arguments, [0, 1, 2], num_workers=0)


def test_every_row_has_the_label_that_the_log_says(config: SonderConfig, tmp_path: Path) -> None:
    plan, rows = planned(config), Folder.at(str(tmp_path))
    counts = make_rows(config, plan, tmp_path)
    for model in plan.models:
        if model.is_backtest:
            continue
        found: dict[str, list[tuple[str, int, bool]]] = {}
        for part in PARTS:
            pieces = RowFiles.of(rows, model, part, [0, 1, 2]).pieces
            found[part] = []
            for cut, bucket in pieces:
                read = read_rows(rows, cut, bucket, ["user_id", "features", model.column])
                labels, users = read.labels(model)[:, 0], read.table.column("user_id").to_pylist()
                assert read.features.shape == (len(users), model.spec.num_features)
                asked = zip(users, labels.tolist(), strict=True)
                found[part] += [(user, cut.cutoff_us // DAY, bool(label)) for user, label in asked if label == label]
            counted = [sum(bucket[model.name][part][0] for bucket in counts)]
            counted += np.sum([bucket[model.name][part][1] for bucket in counts], axis=0).tolist()
            assert counted == [len(found[part]), sum(label for *_, label in found[part])]
        train_rows = {(user, day): label for user, day, label in found["train"]}
        assert train_rows == {
            (user, day): label for day in TRAIN_DAYS for user, label in expected(model.task.name, day).items()
        }
        held_out = {(user, day): label for user, day, label in found["calibration"]}
        assert {(user, day) for user, day, _ in found["stop"]} < set(held_out)
        assert len(found["stop"]) == pytest.approx(len(held_out) / 2, rel=0.2)
        assert held_out == {(user, 80): label for user, label in expected(model.task.name, 80).items()}
        assert {user: label for user, _, label in found["test"]} == expected(model.task.name, 90)


def test_a_log_with_too_many_users_is_sampled_by_whole_users(config: SonderConfig, tmp_path: Path) -> None:
    plan = planned(config)
    make_rows(config, plan, tmp_path, share=0.5)
    rows, model = Folder.at(str(tmp_path)), plan.models[0]
    users: dict[str, set[str]] = {}
    for part in PARTS:
        read = [read_rows(rows, cut, b, ["user_id"]) for cut, b in RowFiles.of(rows, model, part, [0, 1, 2]).pieces]
        users[part] = {user for piece in read for user in piece.table.column("user_id").to_pylist()}
    assert users["stop"] | users["calibration"] <= users["test"]
    assert 200 < len(users["test"]) < 300


def test_heads_are_tested_on_the_last_window_after_being_calibrated_on_the_one_before(
    trained: tuple[dict[str, Any], Path],
) -> None:
    result, target = trained
    assert list(result["metrics"]) == ["buy_10d", "churn_10d"]
    for name, metrics in result["metrics"].items():
        assert metrics["train_cutoffs_us"] == [day * DAY for day in TRAIN_DAYS]
        assert (metrics["cutoff_us"], metrics["calibrated_on"]) == (90 * DAY, "later_time")
        test = pl.read_parquet(target / "test" / f"{name}.parquet")
        assert dict(test.select("user_id", "label").iter_rows()) == expected(name, 90)
        assert metrics["users"] == test.height
        assert metrics["base_rate"] == pytest.approx(test["label"].mean())
        assert metrics["auc"] > 0.65
        told, came = np.mean(test["value"].to_numpy()), np.mean(test["label"].to_numpy())
        assert abs(told - came) < 0.1  # a probability, not a rank
        assert metrics["calibration_users"] == len(expected(name, 80))


def test_what_cannot_be_learnt_is_refused_with_numbers_and_the_others_go_on(
    trained: tuple[dict[str, Any], Path],
) -> None:
    result, target = trained
    folder = Folder.at(str(target))
    refused = {refusal["task"]: refusal for refusal in result["refusals"]}
    assert set(refused) == {"rare_10d", "unheard_of", "too_long"}
    rows = [label for day in TRAIN_DAYS for label in expected("rare_10d", day).values()]
    assert refused["rare_10d"]["numbers"] == {
        "users": len(rows), "positives": sum(rows), "negatives": len(rows) - sum(rows)
    }  # fmt: skip
    assert "in the train rows" in refused["rare_10d"]["reason"]
    assert "'share'" in refused["unheard_of"]["reason"]
    assert refused["too_long"]["numbers"]["log_days"] == pytest.approx(100, abs=1)
    assert [head.task.name for head in load_heads(folder)] == ["buy_10d", "churn_10d"]
    assert [refusal.to_dict() for refusal in load_refusals(folder)] == result["refusals"]
    assert not (folder / "training").exists()


def test_nothing_learnable_is_no_heads_and_no_error(config: SonderConfig, tmp_path: Path) -> None:
    only = SonderConfig.model_validate(config.model_dump() | {"scores": TASKS[1:3]})
    result = train(only, tmp_path / "scores")
    assert result["metrics"] == {}
    assert [refusal["task"] for refusal in result["refusals"]] == ["unheard_of", "rare_10d"]
    target = Folder.at(str(tmp_path / "users"))
    scores = Folder.at(str(tmp_path / "scores"))
    assert score_users(only, "tiny", encoder_of(only), scores, target, as_of_us=100 * DAY, num_workers=0) == {
        "scores": 0
    }


def test_the_embedding_is_read_only_if_its_weights_have_not_seen_the_test(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    assert all(metrics["reads_embedding"] for metrics in trained[0]["metrics"].values())
    later = train(config, tmp_path / "scores", encoder_cutoff_day=91)
    assert not any(metrics["reads_embedding"] for metrics in later["metrics"].values())


def test_a_run_that_is_killed_goes_on_from_its_last_saved_trees_and_ends_with_the_same(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown: list[int] = []
    grow = pipelines.score_train.grow

    def mortal(*arguments: Any, save: Any, start: Progress, **options: Any) -> Any:
        grown.append(len(start.losses))

        def save_and_die(progress: Progress) -> None:
            save(progress)
            if len(grown) == 6:  # the second trial of the second task
                raise RuntimeError("out of memory")

        return grow(*arguments, save=save_and_die, start=start, **options)

    monkeypatch.setattr(pipelines.score_train, "grow", mortal)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(config, tmp_path)
    assert not (tmp_path / "heads.json").exists()
    assert train(config, tmp_path) == trained[0]
    assert grown[:6] == [0] * 6
    assert grown[6] >= SAVE_EVERY  # the first trial of the second task, from its last save
    assert grown[7] == SAVE_EVERY  # the second, from the save before its end
    assert len(grown) == 12  # four trials of the second task and two backtests: the first task was not begun again
    for name in ("buy_10d.xgb.json", "churn_10d.xgb.json"):
        assert (tmp_path / name).read_bytes() == (trained[1] / name).read_bytes()


def test_a_matrix_that_is_kept_on_disk_gives_heads_as_good(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    quantised = pipelines.score_train.quantised

    def told(*arguments: Any, **options: Any) -> Any:
        matrix = quantised(*arguments, **options)
        kinds.append(type(matrix).__name__)
        return matrix

    monkeypatch.setattr(pipelines.score_train, "quantised", told)
    small = SonderConfig.model_validate(config.model_dump() | {"scoring": {"max_matrix_gib": 1e-6, "trials": 1}})
    result = train(small, tmp_path / "scores")
    assert set(kinds) == {"ExtMemQuantileDMatrix"}
    for name, metrics in result["metrics"].items():
        assert metrics["auc"] == pytest.approx(trained[0]["metrics"][name]["auc"], abs=0.03)


def test_bins_of_a_large_matrix_are_found_on_rows_spread_over_all_files(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sizes = planned(config), []
    make_rows(config, plan, tmp_path / "rows")
    files = RowFiles.of(Folder.at(str(tmp_path / "rows")), plan.models[0], "train", [0, 1, 2])
    num_rows = len(files.labels(plan.models[0]))
    assert pipelines.score_matrix.bins_of(files, 3, num_rows=num_rows) is None
    monkeypatch.setattr(pipelines.score_matrix, "BINNED_ROWS", 500)
    bins = pipelines.score_matrix.bins_of(files, 3, num_rows=num_rows)
    assert bins is not None
    every = -(-num_rows // 500)
    assert bins.num_row() == -(-num_rows // every)  # each n-th row of all files in a line
    bins_of = pipelines.score_train.bins_of

    def told(*arguments: Any, **options: Any) -> Any:
        matrix = bins_of(*arguments, **options)
        sizes.append(matrix.num_row())
        return matrix

    monkeypatch.setattr(pipelines.score_train, "bins_of", told)
    result = train(SonderConfig.model_validate(config.model_dump() | {"scoring": {"trials": 1}}), tmp_path / "scores")
    assert max(sizes) <= 500
    for name, metrics in result["metrics"].items():
        assert metrics["auc"] == pytest.approx(trained[0]["metrics"][name]["auc"], abs=0.03)


def test_everybody_who_can_be_asked_is_scored_once(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    heads, target = Folder.at(str(trained[1])), Folder.at(str(tmp_path / "users"))
    counted = score_users(config, "tiny", encoder_of(config), heads, target, as_of_us=95 * DAY, num_workers=0)
    scores = pl.read_parquet(tmp_path / "users" / "bucket=*" / "part-0.parquet", hive_partitioning=False)
    asked = {(user, name) for name in ("buy_10d", "churn_10d") for user in expected(name, 95)}
    assert set(scores.select("user_id", "name").iter_rows()) == asked
    assert counted == {"scores": len(asked)}
    assert scores.height == len(asked)
    assert scores["value"].is_between(0, 1).all()
    assert scores["drivers"].list.len().min() >= 1


def test_vectors_that_are_there_already_are_read_and_give_the_same_scores(
    config: SonderConfig, trained: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, segmented = Folder.at(str(trained[1])), Folder.at(str(tmp_path / "segmented"))
    for name, at in (("computed", {}), ("read", {"vectors": segmented / "vectors"})):
        target = Folder.at(str(tmp_path / name))
        score_users(config, "tiny", encoder_of(config), heads, target, as_of_us=95 * DAY, num_workers=0, **at)
        segment_users(config, "tiny", encoder_of(config), segmented, as_of_us=95 * DAY, num_workers=0)
        monkeypatch.delattr("pipelines.score.embed_users", raising=False)
    assert any(head.spec.embedding_dim for head in load_heads(heads))
    assert all_bytes(tmp_path / "read") == all_bytes(tmp_path / "computed") != {}


@pytest.mark.ray
@pytest.mark.slow
def test_all_heads_come_from_one_run_of_ray_train_and_are_those_of_one_process(
    ray_session: None,
    config: SonderConfig,
    trained: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[list[str]] = []

    class Counted(pipelines.score_train.XGBoostTrainer):
        def fit(self) -> Any:
            models = [ModelPlan.from_dict(model) for model in self.train_loop_config["models"]]
            runs.append([model.name for model in models if not model.is_backtest])
            return super().fit()

    monkeypatch.setattr(pipelines.score_train, "XGBoostTrainer", Counted)
    result = train(config, tmp_path / "scores", num_workers=None)
    assert runs == [["buy_10d", "churn_10d"]]
    assert result == trained[0]
    for name in ("buy_10d.xgb.json", "churn_10d.xgb.json", "heads.json", "test/buy_10d.parquet"):
        assert (tmp_path / "scores" / name).read_bytes() == (trained[1] / name).read_bytes()


@pytest.fixture(scope="module")
def amounts(config: SonderConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    target = tmp_path_factory.mktemp("amounts") / "scores"
    declared = [
        {"name": "views_10d", "count": True, "action": "view", "within_days": 10},
        {"name": "next_10d", "next_category": 3, "within_days": 10, "eligible": {"min_events": 2}},
    ]
    several = SonderConfig.model_validate(config.model_dump() | {"scores": declared, "scoring": {"trials": 1}})
    return train(several, target), target


def test_counts_and_categories_are_learnt_beside_each_other_and_judged_by_their_own_measures(
    amounts: tuple[dict[str, Any], Path],
) -> None:
    result, target = amounts
    assert result["refusals"] == []
    views = pl.read_parquet(target / "test" / "views_10d.parquet")
    counted = {
        user: sum(90 * DAY <= round(day * DAY) < 100 * DAY and action == "view" for day, _, action in events)
        for user, events in LOG.items()
    }
    assert all(counted[user] == label for user, label in views.select("user_id", "label").iter_rows())
    assert views["value"].mean() == pytest.approx(views["label"].mean(), rel=0.25)
    heads = load_heads(Folder.at(str(target)))
    assert sorted(heads[1].outputs) == ["next_10d/c0", "next_10d/c1", "next_10d/c2"]
    categories = pl.read_parquet(target / "test" / "next_10d.parquet")
    assert categories["value"].arr.len().unique().to_list() == [3]
    assert all(len(LOG[user]) >= 2 for user in categories["user_id"])
    for name in ("views_10d", "next_10d"):
        judged = Folder.at(str(target / "quality" / f"{name}.json")).read_json()
        assert judged["backtest"] is not None
        assert len(judged["backtest"]["points"]) == 4
        assert judged["drivers"]
        assert set(judged["slices"]) == {"lifecycle", "tenure", "score"}


def test_the_backtest_asks_the_older_model_at_four_cutoffs_that_end_with_the_test(
    trained: tuple[dict[str, Any], Path],
) -> None:
    older = pl.read_parquet(trained[1] / "backtest" / "buy_10d.parquet")
    days = [int(cutoff.timestamp()) // 86_400 for cutoff in older["cutoff"].unique().sort()]
    assert days[-1] == 90
    assert len(days) == 4
    for day in days:
        asked = older.filter(pl.col("cutoff").dt.timestamp("us") == day * DAY)
        assert dict(asked.select("user_id", "label").iter_rows()) == expected("buy_10d", day)
