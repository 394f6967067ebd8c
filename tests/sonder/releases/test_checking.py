"""Promotion through the gate: refused, forced, at the same time, killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sonder.core.errors import ConfigurationError, NotFound, PromotionRefused
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.checking import Gate, check
from sonder.releases.consumers import Consumers
from sonder.releases.current import CURRENT, Current, GateRecord, Promotion
from sonder.releases.registry import Registry
from tests.sealed import draw_profiles, seal_release

ADS = {"name": "ads", "owner": "ads-oncall", "requires": [{"metric": "scores.buy_7d.auc", "may_fall": "1%"}]}
FEED = {"name": "feed", "needs": ["embedding"], "requires": [{"metric": "coverage.embedding", "at_least": 0.5}]}
CONSUMERS = Consumers.model_validate({"consumers": [ADS, FEED]})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """r-1 is served; r-2 is worse for ads, r-3 for both, r-4 is better."""
    opened = Workspace.at(str(tmp_path))
    seal_release(opened, "r-1")
    seal_release(opened, "r-2", metrics={"scores.buy_7d.auc": 0.73})
    seal_release(opened, "r-3", metrics={"scores.buy_7d.auc": 0.73}, profiles=draw_profiles(num_cold=150))
    seal_release(opened, "r-4", metrics={"scores.buy_7d.auc": 0.76})
    Registry(opened).promote("r-1", reason="first", gate=Gate(opened, CONSUMERS))
    return opened


def test_a_release_that_keeps_its_promises_is_served_and_the_switch_says_so(workspace: Workspace) -> None:
    current = Registry(workspace).promote("r-4", reason="better", gate=Gate(workspace, CONSUMERS))
    assert current.promotion.gate == GateRecord(against="r-1", promises=3)
    assert Registry(workspace).current() == current


def test_a_refusal_lists_every_broken_promise_and_changes_nothing(workspace: Workspace) -> None:
    before = (workspace.releases / CURRENT).read_bytes()
    with pytest.raises(PromotionRefused) as refused:
        Registry(workspace).promote("r-3", reason="hopeful", gate=Gate(workspace, CONSUMERS))
    told = str(refused.value)
    assert "r-3 does not keep 2 of 3 promises, to 2 consumers, compared with r-1, which stays served" in told
    assert (
        "\n  ads (owner: ads-oncall): scores.buy_7d.auc was 0.7500, is 0.7300 (-2.67 %), allowed: may fall 1 %" in told
    )
    assert "\n  feed: coverage.embedding was 0.9000, is 0.2500 (-72.22 %), allowed: at least 0.5000" in told
    assert (workspace.releases / CURRENT).read_bytes() == before


def test_the_first_promotion_and_one_without_consumers_are_not_gated(workspace: Workspace, tmp_path: Path) -> None:
    assert Registry(workspace).current().history == ()  # type: ignore[union-attr]
    assert Registry(workspace).promote("r-2", reason="no file").promotion.gate is None
    empty = Workspace.at(str(tmp_path / "other"))
    seal_release(empty, "r-2", metrics={"scores.buy_7d.auc": None})
    assert Registry(empty).promote("r-2", reason="first", gate=Gate(empty, CONSUMERS)).promotion.gate is None


def test_force_records_who_when_why_and_what_was_broken(workspace: Workspace) -> None:
    gate = Gate(workspace, CONSUMERS, forced_by="someone")
    current = Registry(workspace).promote("r-2", reason="the old one leaks", gate=gate)
    forced = current.promotion
    assert forced.gate is not None
    assert (forced.reason, forced.gate.by, forced.gate.promises) == ("the old one leaks", "someone", 3)
    assert [sentence.split(" was ")[0] for sentence in forced.gate.overridden] == [
        "ads (owner: ads-oncall): scores.buy_7d.auc"
    ]
    assert current.forced == (forced,)


def test_a_forced_promotion_stays_in_the_books_when_it_is_rolled_back(workspace: Workspace) -> None:
    registry = Registry(workspace)
    forced = registry.promote("r-2", reason="must", gate=Gate(workspace, CONSUMERS, forced_by="someone")).promotion
    registry.rollback(reason="it was worse")
    current = registry.promote("r-4", reason="better", gate=Gate(workspace, CONSUMERS))
    assert [entry.release for entry in current.history] == ["r-1"]
    assert registry.current().forced == (forced,)  # type: ignore[union-attr]


def test_force_where_nothing_is_broken_is_a_plain_promotion(workspace: Workspace) -> None:
    current = Registry(workspace).promote("r-4", reason="better", gate=Gate(workspace, CONSUMERS, forced_by="someone"))
    assert current.promotion.gate == GateRecord("r-1", 3)
    assert current.forced == ()


def test_force_gets_past_a_served_release_that_cannot_be_read(workspace: Workspace) -> None:
    workspace.release("r-1").remove()
    with pytest.raises(NotFound, match="r-1"):
        Registry(workspace).promote("r-4", reason="better", gate=Gate(workspace, CONSUMERS))
    forced = Registry(workspace).promote("r-4", reason="r-1 is gone", gate=Gate(workspace, CONSUMERS, forced_by="me"))
    assert forced.promotion.gate is not None
    assert "nothing was checked: No release 'r-1'" in forced.promotion.gate.overridden[0]


def test_a_rollback_is_never_gated(workspace: Workspace) -> None:
    registry = Registry(workspace)
    registry.promote("r-2", reason="must", gate=Gate(workspace, CONSUMERS, forced_by="someone"))
    registry.promote("r-4", reason="better", gate=Gate(workspace, CONSUMERS))
    assert registry.rollback(reason="slow").release == "r-2"  # which is worse than r-4 in all that ads rely on


def test_a_consumer_that_asks_for_what_no_release_has_is_told_what_it_may_have_meant(workspace: Workspace) -> None:
    asked = {"name": "ads", "needs": ["scores.buy"], "requires": [{"metric": "scores.buy_7.auc", "may_fall": "1%"}]}
    consumers = Consumers.model_validate({"consumers": [asked]})
    with pytest.raises(ConfigurationError) as refused:
        Registry(workspace).promote("r-4", reason="better", gate=Gate(workspace, consumers))
    assert "scores.buy, no release has this field; near: scores.buy_7d" in str(refused.value)
    assert "scores.buy_7.auc, no release has this metric; near: scores.buy_7d.auc" in str(refused.value)
    forced = Registry(workspace).promote("r-4", reason="better", gate=Gate(workspace, consumers, forced_by="me"))
    assert forced.promotion.gate is not None
    assert len(forced.promotion.gate.overridden) == 2  # a mistake in the file does not block an emergency


def test_a_metric_of_an_old_release_is_known_though_neither_of_the_two_has_it(workspace: Workspace) -> None:
    seal_release(workspace, "r-0", metrics={"old.auc": 0.5})
    consumers = Consumers.model_validate(
        {"consumers": [{"name": "a", "requires": [{"metric": "old.auc", "at_least": 0}]}]}
    )
    finding = check(workspace, consumers, "r-4", "r-1").findings[0]
    assert finding.status == "not measured"


def test_promoting_what_is_served_or_does_not_exist_does_not_ask_the_gate(workspace: Workspace) -> None:
    def asked(*_: Any) -> GateRecord:
        raise AssertionError("the gate was asked")

    assert Registry(workspace).promote("r-1", reason="again", gate=asked).reason == "first"
    (workspace.release("r-5") / "profiles" / "part").write_bytes(b"half")
    for unpublished in ("r-5", "r-9"):
        with pytest.raises(NotFound):
            Registry(workspace).promote(unpublished, reason="early", gate=asked)


def test_a_switch_during_the_check_makes_the_gate_look_again(workspace: Workspace) -> None:
    registry, compared = Registry(workspace), []

    def slow(release_id: str, served_id: str) -> GateRecord:
        if not compared:  # somebody else promotes r-4 meanwhile
            Registry(workspace).promote("r-4", reason="faster")
        compared.append(served_id)
        return GateRecord(served_id, 0)

    current = registry.promote("r-2", reason="slow", gate=slow)
    assert compared == ["r-1", "r-4"]
    assert [entry.release for entry in current.history] == ["r-4", "r-1"]


def test_a_release_that_was_fine_and_is_not_any_more_is_refused(workspace: Workspace) -> None:
    """r-2's AUC is within 1 % of 0.735, not of the 0.76 that is served when it comes to switching."""
    seal_release(workspace, "r-6", metrics={"scores.buy_7d.auc": 0.735})
    registry = Registry(workspace)
    registry.promote("r-6", reason="must")
    gate, calls = Gate(workspace, CONSUMERS), []

    def meanwhile(release_id: str, served_id: str) -> GateRecord:
        record = gate(release_id, served_id)
        calls.append(served_id)
        if len(calls) == 1:
            Registry(workspace).promote("r-4", reason="faster")
        return record

    with pytest.raises(PromotionRefused, match="compared with r-4"):
        registry.promote("r-2", reason="slow", gate=meanwhile)
    assert registry.current().release == "r-4"  # type: ignore[union-attr]


def test_of_many_promotions_at_once_none_is_lost(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path))
    names = [f"r-{number}" for number in range(6)]
    for name in names:
        seal_release(workspace, name, profiles=draw_profiles(users=4, num_cold=1))
    together = threading.Barrier(len(names))

    def promote(name: str) -> None:
        together.wait()
        Registry(workspace).promote(name, reason="mine", gate=Gate(workspace, Consumers(consumers=())))

    threads = [threading.Thread(target=promote, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    current = Registry(workspace).current()
    assert current is not None
    served = [current.promotion, *current.history]
    assert sorted(entry.release for entry in served) == names
    records = [entry.gate.against if entry.gate else None for entry in served]
    assert records == [*(entry.release for entry in served[1:]), None]  # each was compared with the one before it


KILLED = """
import os, signal, sys
from sonder.core.workspace import Workspace
from sonder.core.storage import Folder
from sonder.releases.registry import Registry
whole = Folder.write_json
def killed(self, content):
    if sys.argv[2] == "after":
        whole(self, content)
    os.kill(os.getpid(), signal.SIGKILL)
Folder.write_json = killed
Registry(Workspace.at(sys.argv[1])).promote("r-4", reason="better")
"""


@pytest.mark.parametrize(("moment", "served"), [("before", "r-1"), ("after", "r-4")])
def test_a_promotion_killed_under_the_lock_leaves_a_whole_file_and_no_lock(
    workspace: Workspace, moment: str, served: str
) -> None:
    command = [sys.executable, "-c", KILLED, workspace.root.path, moment]
    died = subprocess.run(command, env=dict(os.environ), capture_output=True, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    registry = Registry(workspace)
    assert registry.current().release == served  # type: ignore[union-attr]
    assert registry.promote("r-2", reason="next").predecessor == served


def test_files_from_before_the_gate_are_read_and_plain_switches_still_look_like_them(tmp_path: Path) -> None:
    old = {
        "release": "r-2",
        "promoted_at": "2026-01-02T00:00:00+00:00",
        "reason": "better",
        "predecessor": "r-1",
        "history": [{"release": "r-1", "promoted_at": "2026-01-01T00:00:00+00:00", "reason": "first"}],
    }
    file = Folder.at(str(tmp_path / CURRENT))
    file.write_json(old)
    current = Current.read(file)
    assert (current.release, current.predecessor, current.forced) == ("r-2", "r-1", ())
    file.write_json(current.to_dict())
    assert file.read_json() == old


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    forced = Promotion("r-2", "2026-01-02T00:00:00+00:00", "must", GateRecord("r-1", 2, "me", ("ads: a", "ads: b")))
    current = Current(Promotion("r-1", "2026-01-01T00:00:00+00:00", "first")).after(forced)
    file = Folder.at(str(tmp_path / CURRENT))
    file.write_json(current.to_dict())
    assert Current.read(file) == current
    assert file.read_json()["forced"][0]["gate"]["by"] == "me"
