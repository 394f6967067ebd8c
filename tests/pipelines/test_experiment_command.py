"""`sonder experiment` from a file to a verdict, over a small log and exposures as gateways write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.experiment_analysis import exposed_by_arm
from pipelines.experiment_page import WORDS
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import Allocation, assign_users
from sonder.experiments.exposures import EXPOSURE_SCHEMA, SHOWN_SCHEMA
from sonder.experiments.specification import Experiment
from tests.tiny_log import random_log, timelines_of, vocabulary_of, write_snapshot

DAYS, EXPOSED_DAY = 80, 60
LOG = random_log(3, num_users=600, num_items=8, num_days=DAYS)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CONTENT: dict[str, Any] = {
    "name": "mixed-lists",
    "hypothesis": "lists of several interests are bought from more often",
    "arms": [{"name": "control"}, {"name": "mixed", "ranking": {"source": "interests"}}],
    "metrics": [
        {"name": "bought", "kind": "conversion", "action": "buy", "within_days": 7},
        {"name": "hidden", "kind": "count", "action": "hide", "within_days": 7, "wanted": "decrease"},
    ],
    "primary": "bought",
    "guardrails": [{"metric": "hidden", "margin": 0.5}],
    "minimum_effect": 0.3,
    "pre_days": 14,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """sonder.yaml over a snapshot, and ask.yaml."""
    (tmp_path / "sonder.yaml").write_text(
        yaml.safe_dump({"workspace": str(tmp_path / "w"), "events": {"path": "none"}})
    )
    (tmp_path / "ask.yaml").write_text(yaml.safe_dump(CONTENT))
    workspace = Workspace.at(str(tmp_path / "w"))
    write_snapshot(workspace, "s", timelines_of(LOG), vocabulary_of(["a"] * 8))
    return tmp_path


def run(folder: Path, *command: str) -> str:
    told = CliRunner().invoke(app, ["experiment", *command, "-c", str(folder / "sonder.yaml")], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.output


def expose(folder: Path, experiment: Experiment) -> int:
    """Everybody who was active after day 60 saw an arm then -> how many."""
    users = [user for user, events in LOG.items() if events and max(event[0] for event in events) > EXPOSED_DAY]
    rows = pl.DataFrame({"user_id": users, "arm": assign_users(Allocation.of(experiment), users, 1.0)}).with_columns(
        experiment=pl.lit(experiment.name),
        version=1,
        exposed_at=pl.lit(EPOCH + timedelta(days=EXPOSED_DAY)),
        release=pl.lit("r"),
        surface=pl.lit("recommendations"),
    )
    folder = folder / "w" / "experiments" / experiment.name / "exposures" / "gateway"
    folder.mkdir(parents=True)
    table = rows.select(EXPOSURE_SCHEMA.names).to_arrow().cast(EXPOSURE_SCHEMA)
    pa.parquet.write_table(table, folder / "1.parquet")
    return len(users)


def test_from_a_file_to_a_verdict(folder: Path) -> None:
    planned = run(folder, "plan", str(folder / "ask.yaml"), "--workers", "0", "--json", str(folder / "plan.json"))
    assert "bought" in planned
    assert "mixed-lists is planned, version 1" in planned
    size = json.loads((folder / "plan.json").read_text())["users_by_arm"]
    assert "100.0% of the users" in run(folder, "start", "mixed-lists", "--reason", "because")
    num_exposed = expose(folder, Experiment.model_validate(CONTENT))
    status = run(folder, "status", "mixed-lists")
    assert "because" in status
    exposed = exposed_by_arm(Workspace.at(str(folder / "w")), Experiment.model_validate(CONTENT))
    assert sum(exposed.values()) == num_exposed
    assert all(f"{users:,}" in status for users in exposed.values())
    files = ["--json", str(folder / "a.json"), "--html", str(folder / "a.html")]
    told = run(folder, "analyse", "mixed-lists", "--workers", "0", *files)
    content = json.loads((folder / "a.json").read_text())
    assert content["planned"]["source"] == "plan"
    assert content["planned"]["users_by_arm"] == size
    assert WORDS[content["verdict"]["decision"]] in told
    assert sum(content["srm"]["counts"].values()) == num_exposed
    assert "lists of several interests" in (folder / "a.html").read_text()
    again = run(folder, "plan", str(folder / "ask.yaml"), "--workers", "0")
    assert "the plan that it started with stays" in again
    assert "is stopped" in run(folder, "stop", "mixed-lists")
    assert "stopped" in run(folder, "status")


def test_a_file_may_be_started_at_once_and_its_share_raised(folder: Path) -> None:
    ramp = CONTENT | {"ramp": [{"share": 0.1, "hours": 24}]}
    (folder / "ask.yaml").write_text(yaml.safe_dump(ramp))
    assert "10.0% of the users" in run(folder, "start", str(folder / "ask.yaml"))
    assert "50.0% of the users" in run(folder, "share", "mixed-lists", "0.5")
    with pytest.raises(InvalidRequest, match="is running"):
        run(folder, "start", "mixed-lists")


def test_what_reached_nobody_cannot_be_analysed(folder: Path) -> None:
    run(folder, "start", str(folder / "ask.yaml"))
    with pytest.raises(NotFound, match="No exposure"):
        run(folder, "analyse", "mixed-lists", "--workers", "0")
    assert "0" in run(folder, "status", "mixed-lists")


def test_an_interleaved_experiment_ends_in_a_preference(folder: Path) -> None:
    asked = CONTENT | {"method": "interleave", "guardrails": []}
    (folder / "ask.yaml").write_text(yaml.safe_dump(asked))
    run(folder, "start", str(folder / "ask.yaml"))
    rows = [
        (user, f"q{place}", f"i{item}", "b" if item % 2 else "a", item)
        for place, user in enumerate(list(LOG)[:300])
        for item in range(8)
    ]
    columns = list(zip(*rows, strict=True))
    table = pl.DataFrame(
        {
            "experiment": "mixed-lists", "version": 1, "user_id": columns[0], "request_id": columns[1],
            "item_id": columns[2], "team": columns[3], "position": columns[4],
            "shown_at": [EPOCH + timedelta(days=EXPOSED_DAY)] * len(rows),
        }
    )  # fmt: skip
    shown = folder / "w" / "experiments" / "mixed-lists" / "shown" / "gateway"
    shown.mkdir(parents=True)
    pa.parquet.write_table(table.select(SHOWN_SCHEMA.names).to_arrow().cast(SHOWN_SCHEMA), shown / "1.parquet")
    told = run(folder, "analyse", "mixed-lists", "--workers", "0", "--json", str(folder / "a.json"))
    content = json.loads((folder / "a.json").read_text())
    bought = {
        (user, item)
        for user in list(LOG)[:300]
        for day, item, action in LOG[user]
        if action == "buy" and EXPOSED_DAY <= day < EXPOSED_DAY + 7
    }
    more = {user: 0 for user, _ in bought}
    for user, item in bought:
        more[user] += 1 if item % 2 else -1
    assert content["num_prefer_b"] == sum(score > 0 for score in more.values())
    assert content["num_prefer_a"] == sum(score < 0 for score in more.values())
    assert content["num_users"] == 300
    assert "users chose more of mixed's items" in told
