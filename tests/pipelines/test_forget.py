"""`sonder forget`, and a build after it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.forget import forget, search
from pipelines.prepare import prepare
from sonder.core.config import SonderConfig
from sonder.core.workspace import Workspace
from sonder.events.online import OnlineEvent
from sonder.experiments.exposures import EXPOSURE_SCHEMA, SHOWN_SCHEMA
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_log import RedisLog
from tests.redis_server import running_redis


@pytest.mark.ray
def test_a_forgotten_user_is_in_no_later_snapshot(tmp_path: Path, ray_session: None) -> None:
    rows = [f"{user},i{item},buy,2024-01-0{item + 1}T00:00:00Z" for user in ("ada", "bob") for item in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,action,timestamp", *rows]))
    (tmp_path / "users.csv").write_text("user_id,plan\nada,free\nbob,paid\n")
    file = tmp_path / "sonder.yaml"
    file.write_text(
        f"workspace: {tmp_path}/workspace\nevents: {{path: {tmp_path}/log.csv}}\n"
        f"users: {{path: {tmp_path}/users.csv, columns: {{user_id: user_id, attributes: [plan]}}}}\n"
    )
    from sonder.core.config import load

    config: SonderConfig = load(file)
    workspace = Workspace.at(config.workspace)
    before = prepare(config)
    assert search(workspace, "ada") == {f"history/{before}": 2}  # the history and the user table
    log = OnlineLog(workspace.online_log)
    log.append([OnlineEvent("e", "ada", "i", "buy", 1)])
    log.close()
    told = CliRunner().invoke(app, ["forget", "ada", "--config", str(file)])
    assert told.exit_code == 0, told.output
    assert "1 online events" in told.output
    assert f"history/{before}: 2" in told.output
    after = prepare(config)
    assert after != before
    assert search(workspace, "ada") == {f"history/{before}": 2}
    assert search(workspace, "bob").keys() == {f"history/{before}", f"history/{after}"}
    assert prepare(config) == after


def test_a_forgotten_user_is_out_of_the_log_on_the_stores_server(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,action,timestamp\n")
    with running_redis(keeps=tmp_path) as url:
        sections = {"workspace": str(tmp_path / "w"), "events": {"path": "log.csv"}, "serving": {"store": url}}
        log = RedisLog(url)
        log.append([OnlineEvent("e", "ada", "i", "buy", 1), OnlineEvent("f", "bob", "i", "buy", 1)])
        assert forget(SonderConfig.model_validate(sections), "ada").events_removed == 1
        assert [event.user_id for _, event in log.after(0, 9)] == ["bob"]
        log.close()


def test_a_forgotten_user_is_out_of_every_experiment_and_the_search_would_have_found_it(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path / "w"))
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    row = {"version": 1, "arm": "control", "exposed_at": moment, "release": "r-1", "surface": "profile"}
    seen = [{**row, "experiment": "first", "user_id": user} for user in ("ada", "bob")]
    slot = {"version": 1, "request_id": "q", "item_id": "i", "team": "a", "position": 1, "shown_at": moment}
    shown = [{**slot, "experiment": "second", "user_id": user} for user in ("ada", "bob", "ada")]
    experiments = workspace.experiments
    (experiments / "first/exposures/g1/1.parquet").write_table(pa.Table.from_pylist(seen, schema=EXPOSURE_SCHEMA))
    (experiments / "second/shown/g1/1.parquet").write_table(pa.Table.from_pylist(shown, schema=SHOWN_SCHEMA))
    assert search(workspace, "ada") == {"experiments/first": 1, "experiments/second": 2}
    config = SonderConfig.model_validate({"workspace": str(tmp_path / "w"), "events": {"path": "log.csv"}})
    told = forget(config, "ada")
    assert (told.exposures_removed, told.remaining) == (3, {})
    assert search(workspace, "bob") == {"experiments/first": 1, "experiments/second": 1}
    assert forget(config, "ada").exposures_removed == 0
