"""A declared treatment -> model, held-out worth and a predicted uplift for everybody, over tiny logs, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipelines import uplift as uplift_job
from pipelines.target import AskedTarget, choose_targets
from pipelines.uplift import arms_of, asked_uplift, learn_uplift, outcomes_of
from sonder.core.config import SonderConfig, UpliftConfig, validate
from sonder.core.errors import ConfigurationError, DataError
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.events.contract import USER_SCHEMA
from sonder.history.snapshot import users_file
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.scoring.decisions import simple_payoff
from tests.tiny_log import Event, timelines_of, vocabulary_of, write_snapshot

NUM_USERS = 2_000
AT = 20.0  # day of the treatment


def config_of(workspace: Workspace, **changes: Any) -> SonderConfig:
    declared = {
        "name": "mail", "attribute": "arm", "control": "no", "treated": "yes", "at": "1970-01-21",
        "outcome": {"action": "buy", "within_days": 7},
    }  # fmt: skip
    return validate(
        {
            "workspace": str(workspace.root),
            "events": {"path": "log.csv"},
            "users": {"path": "users.csv", "columns": {"attributes": ["arm"]}},
            "uplift": [declared | changes],
        },
        source="test",
    )


def make_world(workspace: Workspace, *, effect: float, biased: bool = False) -> dict[str, str]:
    """Users view on 1 to 10 days; buying within the week is 1 in 5, and `effect` more for treated who view often."""
    draw, arms, log = np.random.default_rng(3), {}, dict[str, list[Event]]()
    for number in range(NUM_USERS):
        name, busy = f"u{number:04d}", int(draw.integers(1, 11))
        is_treated = draw.random() < (busy / 11 if biased else 0.5)
        arms[name] = "yes" if is_treated else "no"
        log[name] = [(float(day) + 0.5, 0, "view") for day in draw.choice(19, busy, replace=False)]
        if draw.random() < 0.2 + effect * is_treated * (busy > 5):
            log[name].append((AT + draw.uniform(0, 6.9), 1, "buy"))
    log["newcomer"], arms["newcomer"] = [(AT + 1, 1, "buy")], "yes"
    log["last"], arms["last"] = [(AT + 9, 0, "view")], "other"
    write_world(workspace, log, arms)
    return arms


def write_world(workspace: Workspace, log: dict[str, list[Event]], arms: dict[str, str]) -> None:
    history = write_snapshot(workspace, "s", timelines_of(log), vocabulary_of(["a", "b"]), num_buckets=2)
    for bucket in range(2):
        rows = [
            {"user_id": name, "attributes": [{"name": "arm", "value": arms[name]}], "consent": []}
            for name in list(log)[bucket::2]
        ]
        users_file(history, bucket).write_table(pa.Table.from_pylist(rows, schema=USER_SCHEMA))
        profiles = [
            {"user_id": row["user_id"], "as_of": 0, "is_cold": True, "num_events": 1, "segments": {},
             "interests": [], "affinities": [], "scores": []} for row in rows
        ]  # fmt: skip
        file = profile_file(workspace.root / "profiles", bucket)
        file.write_table(pa.Table.from_pylist(profiles, schema=PROFILE_SCHEMA))
    manifest = (history / MANIFEST).read_json()
    (history / MANIFEST).write_json(manifest | {"user_table": {}})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = Workspace.at(str(tmp_path / "workspace"))
    manifest = SimpleNamespace(as_of_us=30 * 86_400_000_000, snapshot="s", row_counts={"profiles": NUM_USERS})
    release = SimpleNamespace(
        id="r-1", items=workspace.items("s"), manifest=manifest, profiles=workspace.root / "profiles",
        base_rates=dict,
    )  # fmt: skip
    monkeypatch.setattr(uplift_job.Release, "open", classmethod(lambda *_: release))
    return workspace


def learn(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    return learn_uplift(config_of(workspace, **changes), release_id="r-1")


def test_an_effect_on_the_busy_is_found_and_everybody_gets_a_prediction(workspace: Workspace) -> None:
    make_world(workspace, effect=0.5)
    told = learn(workspace)
    assert told["quality"]["is_better_than_random"]
    assert told["quality"]["average_effect"] == pytest.approx(0.25, abs=0.08)
    assert told["verdict"].startswith("The order finds")
    assert told["left_out"] == {"other_arm": 1, "no_event_before": 1}
    assert told["randomisation"]["refusals"] == []
    users = pl.concat(
        [
            pl.read_parquet((workspace.uplift / "mail" / "users" / f"bucket=00{b}" / "part-0.parquet").path)
            for b in (0, 1)
        ]
    )
    assert len(users) == NUM_USERS + 2
    test = pl.read_parquet((workspace.uplift / "mail" / "test.parquet").path)
    assert len(test) == told["quality"]["users"]
    groups = told["quality"]["groups"]
    assert groups[0]["predicted"] > groups[-1]["predicted"] + 0.2

    asked = AskedTarget(payoff=simple_payoff(cost=1, value=10), uplift="mail", cost=1.0, size=NUM_USERS // 4)
    targets = choose_targets(workspace, asked, release_id="r-1")
    assert targets.users["expected_gain"].to_list() == pytest.approx((10 * targets.users["score"] - 1).to_list())
    assert targets.facts["held_out"]["gain"] > targets.facts["held_out"]["random"]
    assert not any("upper bound" in note for note in targets.facts["notes"])


def test_the_same_question_is_answered_from_the_workspace(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(workspace, effect=0.5)
    first = learn(workspace)
    monkeypatch.setattr(uplift_job, "fit_uplift", None)
    assert learn(workspace) == first


def test_without_an_effect_the_verdict_says_so(workspace: Workspace) -> None:
    make_world(workspace, effect=0.0)
    told = learn(workspace)
    assert not told["quality"]["is_better_than_random"]
    assert "covers 0" in told["verdict"]


def test_a_treatment_of_the_busy_is_refused_before_any_model(workspace: Workspace) -> None:
    make_world(workspace, effect=0.5, biased=True)
    with pytest.raises(DataError, match=r"does not look randomised: .*AUC 0\.[6-9]"):
        learn(workspace)
    assert not (workspace.uplift / "mail").exists()


def test_features_do_not_move_with_what_happened_after_the_treatment(workspace: Workspace, tmp_path: Path) -> None:
    make_world(workspace, effect=0.5)
    seen = []
    for later in (False, True):
        history = workspace.history("s")
        staged = Folder.at(str(tmp_path / f"staged{later}"))
        if later:  # everybody's events after the treatment are gone
            log = {f"u{n:04d}": [(1.0 + n % 7, 0, "view"), (AT + 3, 1, "buy")] for n in range(40)}
        else:
            log = {f"u{n:04d}": [(1.0 + n % 7, 0, "view"), (AT, 0, "view"), (AT + 5, 0, "hide")] for n in range(40)}
        write_world(workspace, log, dict.fromkeys(log, "yes"))
        spec = uplift_job.FeatureSpec((1, 7), ("view", "buy"), ("a", "b"), has_values=False, embedding_dim=0)
        asked = config_of(workspace).uplift[0].model_dump(mode="json")
        task = uplift_job.ExperimentBucket(history.uri, workspace.items("s").uri, staged.uri, spec.to_dict(), asked)
        task(0)
        seen.append((staged / "experiment" / "bucket=000" / "part-0.parquet").read_table())
    before = [table.column("features").combine_chunks().flatten().to_numpy() for table in seen]
    assert len(before[0]) == 20 * spec.num_features
    assert np.array_equal(before[0], before[1], equal_nan=True)
    assert not seen[0].column("outcome").equals(seen[1].column("outcome"))


def test_outcomes_are_read_from_the_window_alone() -> None:
    log = {"a": [(AT - 0.1, 1, "buy")], "b": [(AT, 1, "buy")], "c": [(AT + 6.9, 1, "buy")], "d": [(AT + 7, 1, "buy")]}
    timelines, vocabulary = timelines_of(log, values=3.0), vocabulary_of(["a", "b"])
    bought = {"name": "x", "attribute": "arm", "control": "0", "treated": 1, "at": "1970-01-21"}
    action = UpliftConfig.model_validate(bought | {"outcome": {"action": "buy", "within_days": 7}})
    amount = UpliftConfig.model_validate(bought | {"outcome": {"value": True, "within_days": 7}})
    assert outcomes_of(action, timelines, vocabulary).tolist() == [0, 1, 1, 0]
    assert outcomes_of(amount, timelines, vocabulary).tolist() == [0, 3, 3, 0]


def test_arms_are_read_by_user_and_others_have_none() -> None:
    rows = [
        {"user_id": "a", "attributes": [{"name": "plan", "value": "1"}, {"name": "arm", "value": "1"}], "consent": []},
        {"user_id": "b", "attributes": [{"name": "arm", "value": "0"}], "consent": []},
        {"user_id": "c", "attributes": [{"name": "arm", "value": None}], "consent": []},
        {"user_id": "d", "attributes": [], "consent": []},
    ]
    asked = UpliftConfig.model_validate(
        {"name": "x", "attribute": "arm", "control": 0, "treated": 1, "at": "1970-01-21",
         "outcome": {"value": True, "within_days": 7}}
    )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=USER_SCHEMA)
    assert arms_of(table, pa.array(["e", "b", "a", "c", "d"]), asked).tolist() == [-1, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"at": "1970-01-27"}, ConfigurationError, "inside the log"),
        ({"at": "1970-01-01"}, ConfigurationError, "after a day of history"),
        ({"outcome": {"action": "rent", "within_days": 7}}, ConfigurationError, "No action 'rent'"),
        ({"treated": "nobody"}, DataError, "both arms"),
    ],
)
def test_a_plan_that_the_log_cannot_answer_is_refused(
    workspace: Workspace, changes: dict[str, Any], error: type, said: str
) -> None:
    make_world(workspace, effect=0.0)
    with pytest.raises(error, match=said):
        learn(workspace, **changes)


def test_a_treatment_is_asked_for_by_its_declared_name(workspace: Workspace) -> None:
    config = config_of(workspace)
    assert asked_uplift(config, None).name == "mail"
    with pytest.raises(ConfigurationError, match="one of mail"):
        asked_uplift(config, "post")
    with pytest.raises(ConfigurationError, match=r"expected one of users\.columns\.attributes"):
        config_of(workspace, attribute="group")
