"""Counting growth bucket by bucket: what is written, what is kept, and what any past day answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import pipelines.lifecycle
from pipelines.cli import app
from pipelines.lifecycle import GrowthBucket, answer, answer_for_user, ask, read_growth, write_growth
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.lifecycle import STATES, lifecycle_of
from sonder.segments.overview import LifecycleOverview
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import Event, random_log, timelines_of, vocabulary_of, write_snapshot

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)
DAYS = 100
KNOWN: list[Event] = [(day, 0, "view") for day in (20.5, 21.5, 60.5, 99.5)]
LOG = {"known": KNOWN, **random_log(5, num_users=50, num_items=3, num_days=DAYS)}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A snapshot `tiny` in three buckets; the release `r-1` with thresholds is served."""
    found = Workspace.at(str(tmp_path / "workspace"))
    write_snapshot(found, "tiny", timelines_of(LOG), vocabulary_of(["a", "b", "c"]), num_buckets=3)
    (found.release("r-1") / "segments" / "thresholds.json").write_json(THRESHOLDS.to_dict())
    served = SimpleNamespace(
        current=lambda: SimpleNamespace(release="r-1"), show=lambda _: SimpleNamespace(snapshot="tiny")
    )
    monkeypatch.setattr(pipelines.lifecycle, "Registry", lambda _: served)
    return found


def write(workspace: Workspace) -> dict[str, object]:
    history, scratch = workspace.history("tiny"), workspace.staging("growth")
    return write_growth(history, workspace.release("r-1"), scratch, as_of_us=DAYS * DAY, num_workers=0)


def test_growth_is_the_sum_of_the_buckets_and_is_read_back(workspace: Workspace) -> None:
    result = write(workspace)
    timelines = timelines_of(LOG)
    empty = LifecycleOverview.empty(int(timelines.times_us.min()), DAYS * DAY, THRESHOLDS)
    whole = empty.count(timelines.offsets, timelines.times_us)
    found = read_growth(workspace.release("r-1"))
    assert isinstance(found, LifecycleOverview)
    assert found.to_dict() == whole.to_dict()
    assert result["metrics"] == whole.metrics()


def test_a_bucket_that_was_counted_is_not_counted_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    count = GrowthBucket._count

    def watched(task: GrowthBucket, bucket: int) -> dict[str, object]:
        counted.append(bucket)
        return count(task, bucket)

    monkeypatch.setattr(GrowthBucket, "_count", watched)
    first = write(workspace)
    (workspace.staging("growth") / "bucket=001.json").remove()
    assert write(workspace) == first
    assert counted == [0, 1, 2, 1]


def test_any_past_day_is_answered_from_what_lay_before_it(workspace: Workspace) -> None:
    asked = ask(workspace, 61 * DAY)
    states = lifecycle_of(timelines_of(LOG), as_of_us=61 * DAY, thresholds=THRESHOLDS)
    assert answer(asked).mix == {state: int(np.sum(states == place)) for place, state in enumerate(STATES) if place}
    assert ask(workspace).as_of_us > 99 * DAY


def test_a_user_has_a_state_its_evidence_and_the_states_before(workspace: Workspace) -> None:
    told = answer_for_user(ask(workspace, 65 * DAY), "known")
    assert told.evidence["lifecycle"] == "resurrected"
    assert told.evidence["since"] == datetime.fromtimestamp(60.5 * 86_400, tz=UTC)
    days = [(stay.state, stay.start_us // DAY, stay.end_us // DAY) for stay in told.stays]
    assert days == [("new", 21, 27), ("marginal", 28, 35), ("dormant", 36, 60), ("resurrected", 61, 65)]
    before = answer_for_user(ask(workspace, 10 * DAY), "known")
    assert [stay.state for stay in before.stays] == ["cold"]
    with pytest.raises(NotFound, match="nobody"):
        answer_for_user(ask(workspace, 65 * DAY), "nobody")


@pytest.mark.parametrize("day", [-3, 0, 102])
def test_a_day_outside_of_the_log_is_refused(workspace: Workspace, day: int) -> None:
    with pytest.raises(InvalidRequest, match="tells nothing of --as-of"):
        ask(workspace, day * DAY)


def test_a_log_without_dates_has_a_reason_instead(workspace: Workspace) -> None:
    history = workspace.history("tiny")
    (history / MANIFEST).write_json((history / MANIFEST).read_json() | {"is_ordinal": True})
    assert write(workspace)["metrics"] == {}
    found = read_growth(workspace.release("r-1"))
    assert isinstance(found, str)
    assert "no calendar" in found
    with pytest.raises(InvalidRequest, match="only an order"):
        ask(workspace)
    assert "without growth" in str(read_growth(Folder.at(history.uri)))


def test_the_command_prints_the_tables_of_a_day_and_of_a_user(workspace: Workspace, tmp_path: Path) -> None:
    config = tmp_path / "sonder.yaml"
    config.write_text(f"workspace: {workspace.root}\nevents: {{path: unused}}\n", encoding="utf-8")
    runner, given = CliRunner(), ["lifecycle", "--config", str(config), "--as-of", "1970-03-30"]
    shown = runner.invoke(app, given, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for title in (
        "Lifecycle as of 1970-03-30",
        "Growth per 7 days",
        "Transitions from",
        "Cohorts",
        "Forecast for 1970-04-27",
    ):
        assert title in shown.output
    user = runner.invoke(app, [*given, "--user", "known"], env={"COLUMNS": "200"})
    assert "User known as of 1970-03-30 00:00: dormant" in user.output
