"""Experiments of a workspace: what may start beside what, who is free, and what is written down of every change."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound
from sonder.core.storage import publish
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import assign_users
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import Running, Version
from sonder.releases.canary import Canaries, served_beside
from sonder.releases.registry import Registry, seal
from sonder.releases.reserved import RUNNING
from sonder.releases.stores import drop_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
USERS = pl.Series("user_id", [f"user-{number}" for number in range(20_000)])
BY_RELEASE = [{"name": "control"}, {"name": "treatment", "release": "r-2"}]
BY_RANKING = [{"name": "control"}, {"name": "treatment", "ranking": {"source": "interests"}}]
SAID = {"by": "somebody", "reason": "a test"}


def spec(name: str = "first", arms: list[dict[str, Any]] | None = None, **changes: Any) -> Experiment:
    metric = {"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7}
    content = {"name": name, "hypothesis": "more is bought", "arms": arms or BY_RELEASE, "metrics": [metric]}
    return Experiment.model_validate({**content, "primary": "buyers", "minimum_effect": 0.05, **changes})


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def workspace(tmp_path) -> Workspace:  # type: ignore[no-untyped-def]
    """Four sealed releases, r-1 is current."""
    opened = Workspace.at(str(tmp_path))
    config = SonderConfig.model_validate({"workspace": str(tmp_path), "events": {"path": "e.csv"}})
    (opened.staging("s") / "file").write_bytes(b"")
    publish(opened.staging("s"), opened.history("s"), {})
    for name in ("r-1", "r-2", "r-3", "r-4"):
        staged = opened.staging(name)
        (staged / "encoder" / "weights").write_bytes(name.encode())
        about = {"parent": None, "snapshot": "s", "metrics": {}, "row_counts": {}, "as_of_us": 0}
        seal(staged, opened, release_id=name, config=config, **about)  # type: ignore[arg-type]
    Registry(opened).promote("r-1", reason="first")
    return opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def experiments(workspace: Workspace, clock: Clock) -> Experiments:
    return Experiments(workspace, now=clock)


def users_of(version: Version, share: float) -> set[str]:
    arms = assign_users(version.allocation(), USERS, share)
    return set(USERS.filter(arms.is_not_null()).to_list())


def test_every_change_is_a_version_and_none_is_removed(experiments: Experiments, clock: Clock) -> None:
    experiments.plan(spec(share=0.5), by="ada", reason="an idea")
    experiments.plan(spec(share=0.4), by="ada", reason="a better one")
    experiments.plan(spec(share=0.4), by="ada", reason="the same once more")
    experiments.start("first", by="bob", reason="go")
    clock.now += timedelta(days=1)
    experiments.stop("first", by="eve", reason="seen enough")
    told = [(one.version, one.state, one.changed_by, one.reason) for one in experiments.history("first")]
    assert told == [
        (1, "planned", "ada", "an idea"),
        (2, "planned", "ada", "a better one"),
        (3, "running", "bob", "go"),
        (4, "stopped", "eve", "seen enough"),
    ]
    started, stopped = experiments.history("first")[2:]
    assert (started.lower, started.upper, started.started_at) == (0.0, 0.4, NOW)
    assert (stopped.lower, stopped.upper, stopped.started_at) == (0.0, 0.4, NOW)
    assert stopped.changed_at == NOW + timedelta(days=1)
    assert stopped.share_at(clock.now) == 0.0
    assert experiments.running().experiments == ()
    assert [one.name for one in experiments.list()] == ["first"]


def test_an_experiment_starts_without_a_plan_and_its_arms_have_releases_for_good(
    experiments: Experiments, workspace: Workspace
) -> None:
    started = experiments.start(spec(), **SAID)
    assert (started.version, started.releases) == (1, {"control": "r-1", "treatment": "r-2"})
    assert experiments.running().find("first") == started
    Registry(workspace).promote("r-3", reason="meanwhile")
    assert experiments.running().experiments[0].releases == {"control": "r-1", "treatment": "r-2"}
    assert served_beside(workspace, "r-3") == ("r-1", "r-2")
    assert served_beside(workspace, "r-1") == ("r-2",)


def test_a_ranking_experiment_needs_no_release_of_its_own(experiments: Experiments, workspace: Workspace) -> None:
    assert experiments.start(spec(arms=BY_RANKING), **SAID).releases == {}
    assert served_beside(workspace, "r-1") == ()


def test_experiments_of_a_layer_share_no_user_and_what_does_not_fit_is_refused(experiments: Experiments) -> None:
    first = experiments.start(spec("first", share=0.3, layer="ranking"), **SAID)
    second = experiments.start(spec("second", share=0.5, layer="ranking"), **SAID)
    assert (first.lower, second.lower) == (0.0, 0.3)
    assert users_of(first, 0.3).isdisjoint(users_of(second, 0.5))
    with pytest.raises(InvalidRequest, match=r"0\.2 is free in one piece"):
        experiments.start(spec("third", share=0.3, layer="ranking"), **SAID)
    experiments.stop("first", by="", reason="")
    third = experiments.start(spec("third", share=0.3, layer="ranking"), **SAID)
    assert (third.lower, third.upper) == (0.0, 0.3)
    with pytest.raises(InvalidRequest, match="running"):
        experiments.start(spec("third", share=0.3, layer="ranking"), **SAID)


def test_ten_tenths_fill_a_layer(experiments: Experiments) -> None:
    started = [experiments.start(spec(f"n{n}", arms=BY_RANKING, share=0.1, layer="one"), **SAID) for n in range(10)]
    members = [users_of(version, 0.1) for version in started]
    assert sum(map(len, members)) == len(set.union(*members))
    assert len(set.union(*members)) == len(USERS)
    with pytest.raises(InvalidRequest, match="0 is free"):
        experiments.start(spec("n10", arms=BY_RANKING, share=0.1, layer="one"), **SAID)


@pytest.mark.parametrize("arms", [BY_RELEASE, BY_RANKING])
def test_two_that_decide_the_same_are_refused_unless_they_are_of_one_layer(
    experiments: Experiments, arms: list[dict[str, Any]]
) -> None:
    experiments.start(spec("first", arms, share=0.1, layer="a"), **SAID)
    for layer in ("b", None):
        with pytest.raises(InvalidRequest, match="first is running and decides the"):
            experiments.start(spec("second", arms, share=0.1, layer=layer), **SAID)
    experiments.start(spec("second", arms, share=0.1, layer="a"), **SAID)


def test_one_that_decides_the_release_and_one_that_decides_the_ranking_run_side_by_side(
    experiments: Experiments,
) -> None:
    experiments.start(spec("first", BY_RELEASE), **SAID)
    experiments.start(spec("second", BY_RANKING), **SAID)
    assert [one.name for one in experiments.running().experiments] == ["first", "second"]
    with pytest.raises(InvalidRequest, match="decides the ranking"):
        experiments.start(spec("third", BY_RANKING, method="interleave"), **SAID)


def test_a_canary_and_an_experiment_on_releases_refuse_one_another(
    experiments: Experiments, workspace: Workspace
) -> None:
    canaries = Canaries(workspace)
    canaries.start("r-2", by="", reason="")
    with pytest.raises(InvalidRequest, match="The canary of r-2 chooses"):
        experiments.start(spec(), **SAID)
    experiments.start(spec("ranking", BY_RANKING), **SAID)
    canaries.stop(by="", reason="")
    experiments.start(spec(), **SAID)
    with pytest.raises(InvalidRequest, match="The experiment first chooses"):
        canaries.start("r-2", by="", reason="")
    canaries.start("r-2", mode="shadow", by="", reason="")


def test_at_most_three_releases_are_served_whoever_asks_for_them(
    experiments: Experiments, workspace: Workspace
) -> None:
    canaries = Canaries(workspace)
    canaries.also("r-3")
    experiments.start(spec(), **SAID)
    with pytest.raises(InvalidRequest, match="4 releases would be served"):
        canaries.also("r-4")
    with pytest.raises(InvalidRequest, match="in use"):
        drop_store(workspace, "r-2")
    experiments.stop("first", by="", reason="")
    canaries.also("r-4")
    with pytest.raises(InvalidRequest, match="4 releases would be served"):
        experiments.start(spec("second"), **SAID)


def test_what_is_not_there_damaged_or_alike_does_not_start(experiments: Experiments, workspace: Workspace) -> None:
    with pytest.raises(NotFound, match="No release 'r-9'"):
        experiments.start(spec(arms=[{"name": "a"}, {"name": "b", "release": "r-9"}]), **SAID)
    (workspace.release("r-2") / "encoder" / "weights").write_bytes(b"others")
    with pytest.raises(ArtefactMismatch):
        experiments.start(spec(), **SAID)
    with pytest.raises(InvalidRequest, match="answer alike"):
        experiments.start(spec(arms=[{"name": "a"}, {"name": "b", "release": "r-1"}]), **SAID)
    with pytest.raises(InvalidRequest, match="answer alike"):
        experiments.start(spec(arms=[{"name": "a"}, {"name": "b", "ranking": {"source": "vector"}}]), **SAID)
    with pytest.raises(NotFound, match="No experiment 'unheard'"):
        experiments.start("unheard", **SAID)
    assert experiments.list() == []


def test_a_share_only_rises_and_keeps_everybody(experiments: Experiments, clock: Clock) -> None:
    ramp = [{"share": 0.1, "hours": 24}, {"share": 0.2, "hours": 24}]
    started = experiments.start(spec(share=0.6, ramp=ramp), **SAID)
    shares = [started.share_at(NOW + timedelta(hours=hours)) for hours in (0, 23.9, 24, 48, 1_000)]
    assert shares == [0.1, 0.1, 0.2, 0.2, 0.0]  # its 28 days are over
    assert started.share_at(NOW + timedelta(hours=500)) == 0.2
    clock.now += timedelta(hours=30)
    for wrong in (0.1, 0.7):
        with pytest.raises(InvalidRequest, match=r"between 0\.2.*and 0\.6"):
            experiments.set_share("first", wrong, **SAID)
    raised = experiments.set_share("first", 0.5, **SAID)
    assert raised.share_at(clock.now) == 0.5
    assert users_of(started, 0.1) < users_of(started, 0.2) < users_of(raised, 0.5)
    arms = [assign_users(started.allocation(), USERS, share) for share in (0.2, 0.5)]
    assert (arms[0] == arms[1]).filter(arms[0].is_not_null()).all()


def test_a_running_experiment_changes_in_nothing_that_was_to_be_decided(experiments: Experiments) -> None:
    experiments.start(spec(), **SAID)
    more = [*(one.model_dump() for one in spec().metrics), {"name": "d7", "kind": "retention", "day": 7}]
    guards = [{"metric": "d7", "margin": 0.05}]
    changed = experiments.plan(spec(owner="ada", max_days=14, metrics=more, guardrails=guards), by="ada")
    assert (changed.version, changed.state, changed.started_at) == (2, "running", NOW)
    assert experiments.running().find("first") == changed
    for change in ({"share": 0.5}, {"arms": BY_RANKING}, {"minimum_effect": 0.2}, {"hypothesis": "what came out"}):
        with pytest.raises(InvalidRequest, match=f"its .*{next(iter(change))}.* would change"):
            experiments.plan(spec(owner="ada", max_days=14, metrics=more, guardrails=guards, **change))
    with pytest.raises(InvalidRequest, match="metrics, guardrails would change"):
        experiments.plan(spec())


def test_a_stopped_experiment_stays_stopped(experiments: Experiments) -> None:
    experiments.start(spec(), **SAID)
    experiments.stop("first", by="ada", reason="harm")
    again: list[Callable[[], Any]] = [
        lambda: experiments.start("first", **SAID),
        lambda: experiments.start(spec(), **SAID),
        lambda: experiments.plan(spec()),
    ]
    for attempt in again:
        with pytest.raises(InvalidRequest, match=r"first was stopped .*\(harm\)"):
            attempt()
    with pytest.raises(InvalidRequest, match="first is stopped"):
        experiments.stop("first", **SAID)


def test_a_process_that_died_between_both_files_is_mended_by_the_same_command(
    experiments: Experiments, workspace: Workspace, clock: Clock
) -> None:
    experiments.start(spec(), **SAID)
    clock.now += timedelta(minutes=1)
    before = (workspace.experiments / RUNNING).read_bytes()
    (workspace.experiments / RUNNING).remove()
    assert experiments.start("first", **SAID).version == 2
    experiments.stop("first", **SAID)
    (workspace.experiments / RUNNING).write_bytes(before)
    stopped = experiments.stop("first", **SAID)
    assert (stopped.state, experiments.running().experiments) == ("stopped", ())


def test_changes_at_the_same_moment_are_all_there(workspace: Workspace) -> None:
    def start(number: int) -> Version:
        return Experiments(workspace).start(spec(f"n{number}", BY_RANKING, share=0.1, layer="one"), **SAID)

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8)))
    running = Running.read(workspace).experiments
    assert sorted(one.name for one in running) == sorted(one.name for one in started)
    assert sorted(round(one.lower or 0.0, 6) for one in running) == [n / 10 for n in range(8)]


def test_a_damaged_file_is_told(experiments: Experiments, workspace: Workspace) -> None:
    experiments.start(spec(), **SAID)
    (workspace.experiments / RUNNING).write_bytes(b'{"experiments": 3}')
    with pytest.raises(ArtefactMismatch, match="experiments/RUNNING cannot be read"):
        experiments.running()
    with pytest.raises(ArtefactMismatch, match="experiments/RUNNING cannot be read"):
        Canaries(workspace).also("r-3")
