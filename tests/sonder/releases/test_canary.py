"""What is served beside the current release: who is in a canary, how it starts and ends, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sonder.core.config import SonderConfig
from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotFound
from sonder.core.storage import publish
from sonder.core.workspace import Workspace
from sonder.releases.canary import CANARY, Canaries, Canary, Limits, Step, Trial
from sonder.releases.registry import Registry, seal
from sonder.releases.stores import drop_store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
USERS = [f"user-{number}" for number in range(20_000)]


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
        seal(
            staged,
            opened,
            release_id=name,
            parent=None,
            snapshot="s",
            config=config,
            metrics={},
            row_counts={},
            as_of_us=0,
        )
    Registry(opened).promote("r-1", reason="first")
    return opened


@pytest.fixture
def canaries(workspace: Workspace) -> Canaries:
    return Canaries(workspace, now=lambda: NOW)


def start(canaries: Canaries, candidate: str = "r-2", **options: object) -> Trial:
    return canaries.start(candidate, by="somebody", reason="a test", **options)  # type: ignore[arg-type]


def members(trial: Trial, share: float) -> set[str]:
    draw = trial.draw()
    return {user for user in USERS if draw(user) < share}


def test_a_larger_share_keeps_everybody_who_was_in_a_smaller_one(canaries: Canaries) -> None:
    trial = start(canaries)
    shares = (0.01, 0.05, 0.25, 1.0)
    groups = [members(trial, share) for share in shares]
    for share, group, larger in zip(shares, groups, [*groups[1:], set(USERS)], strict=True):
        assert group <= larger
        assert len(group) / len(USERS) == pytest.approx(share, abs=0.01)
    assert groups[-1] == set(USERS)


def test_another_candidate_is_read_by_other_users_and_a_named_salt_by_the_same(canaries: Canaries) -> None:
    first = start(canaries)
    assert first.salt == "r-1/r-2"
    canaries.stop(by="", reason="")
    second = start(canaries, "r-3")
    both = members(first, 0.2) & members(second, 0.2)
    assert len(both) / len(USERS) == pytest.approx(0.04, abs=0.01)
    canaries.stop(by="", reason="")
    assert members(start(canaries, "r-3", salt=first.salt), 0.2) == members(first, 0.2)


def test_a_ramp_rises_with_time_and_its_last_share_stays(canaries: Canaries) -> None:
    steps = [Step(share=0.01, minutes=10), Step(share=0.05, minutes=20), Step(share=0.25, minutes=1)]
    trial = start(canaries, ramp=steps)
    minutes = {0: 0.01, 9: 0.01, 10: 0.05, 29: 0.05, 30: 0.25, 31: 0.25, 10_000: 0.25}
    assert {after: trial.share_at(NOW + timedelta(minutes=after)) for after in minutes} == minutes
    assert canaries.set_share(0.5).share_at(NOW + timedelta(minutes=9)) == 0.5
    assert canaries.read().running.ramp == ()  # type: ignore[union-attr]


def test_the_file_holds_what_was_started_and_how_it_ended(workspace: Workspace, canaries: Canaries) -> None:
    trial = start(canaries, mode="shadow", limits=Limits(psi=0.1))
    assert Canary.read(workspace).running == trial
    ended = canaries.end(trial.id, "rolled_back", by="gateway x", reason="slow", numbers={"p99": {"value": 3.0}})
    assert ended is not None
    after = Canary.read(workspace)
    assert (after.running, after.ended) == (None, (ended,))
    assert (ended.state, ended.numbers, ended.trial) == ("rolled_back", {"p99": {"value": 3.0}}, trial)


def test_a_trial_ends_once_and_only_by_its_own_id(canaries: Canaries) -> None:
    trial = start(canaries)
    assert canaries.end("another", "rolled_back", by="", reason="") is None
    assert canaries.read().running == trial
    assert canaries.end(trial.id, "rolled_back", by="", reason="first") is not None
    assert canaries.end(trial.id, "stopped", by="", reason="second") is None
    assert [one.reason for one in canaries.read().ended] == ["first"]


def test_promoting_switches_current_and_ends_the_trial(workspace: Workspace, canaries: Canaries) -> None:
    start(canaries)
    ended = canaries.promote(by="somebody", reason="better")
    current = Registry(workspace).current()
    assert current is not None
    assert (current.release, current.reason, current.predecessor) == ("r-2", "better", "r-1")
    assert (ended.state, canaries.read().running) == ("promoted", None)


def test_after_another_promotion_the_trial_says_nothing_and_may_be_replaced(
    workspace: Workspace, canaries: Canaries
) -> None:
    start(canaries)
    Registry(workspace).promote("r-3", reason="meanwhile")
    canary = canaries.read()
    assert canary.trial_beside("r-3") is None
    assert canary.beside("r-3") == ()
    assert start(canaries, "r-4").served == "r-3"
    assert canaries.read().ended[0].state == "stopped"


def test_what_cannot_be_on_trial_is_refused_and_nothing_changes(workspace: Workspace, canaries: Canaries) -> None:
    with pytest.raises(NotFound, match="r-9"):
        start(canaries, "r-9")
    with pytest.raises(InvalidRequest, match="r-1 is the current release"):
        start(canaries, "r-1")
    (workspace.release("r-2") / "encoder" / "weights").write_bytes(b"other")
    with pytest.raises(ArtefactMismatch, match="not those it was sealed with"):
        start(canaries)
    with pytest.raises(ArtefactMismatch, match="not those it was sealed with"):
        canaries.also("r-2")
    assert canaries.read() == Canary()
    start(canaries, "r-3")
    with pytest.raises(InvalidRequest, match="The canary of r-3 is running"):
        start(canaries, "r-4")


def test_three_releases_are_served_at_most(canaries: Canaries) -> None:
    canaries.also("r-2")
    start(canaries, "r-3")
    assert canaries.read().beside("r-1") == ("r-2", "r-3")
    with pytest.raises(InvalidRequest, match="4 releases would be served at once: r-1, r-2, r-4, r-3"):
        canaries.also("r-4")
    canaries.stop(by="", reason="")
    canaries.also("r-4")
    with pytest.raises(InvalidRequest, match="3 at most"):
        start(canaries, "r-3")


def test_a_release_is_served_by_name_until_that_is_ended_also_while_it_is_current(
    workspace: Workspace, canaries: Canaries
) -> None:
    canaries.also("r-1")  # before another one takes over
    canaries.also("r-1")
    assert canaries.read().beside("r-1") == ()
    Registry(workspace).promote("r-2", reason="")
    assert canaries.read().beside("r-2") == ("r-1",)
    canaries.end_also("r-1")
    assert canaries.read().beside("r-2") == ()
    with pytest.raises(NotFound, match="r-1 is not served beside"):
        canaries.end_also("r-1")


def test_the_store_of_what_is_served_beside_is_not_removed(workspace: Workspace, canaries: Canaries) -> None:
    start(canaries)
    canaries.also("r-3")
    for release in ("r-2", "r-3"):
        with pytest.raises(InvalidRequest, match="served beside the current release"):
            drop_store(workspace, release)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"running": {"id": 1}}', b'{"mood": "fine"}'])
def test_a_damaged_file_is_told_with_what_to_do(workspace: Workspace, content: bytes) -> None:
    (workspace.releases / CANARY).write_bytes(content)
    with pytest.raises(ArtefactMismatch, match=r"releases/CANARY cannot be read.*Remove the file"):
        Canary.read(workspace)


def test_without_a_trial_its_commands_say_so(canaries: Canaries) -> None:
    for ask in (
        lambda: canaries.stop(by="", reason=""),
        lambda: canaries.promote(by="", reason=""),
        lambda: canaries.set_share(0.1),
    ):
        with pytest.raises(NotFound, match="No canary is running"):
            ask()


def test_the_history_is_kept_to_its_newest_fifty(canaries: Canaries) -> None:
    for number in range(52):
        start(canaries)
        canaries.stop(by="", reason=str(number))
    assert [one.reason for one in canaries.read().ended] == [str(number) for number in range(51, 1, -1)]
