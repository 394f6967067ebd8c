"""`sonder canary` and `sonder release also`, on the tiny release of the gateway's tests."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.workspace import Workspace
from sonder.releases.canary import Canary
from sonder.releases.canary_counts import Counts, Tally, latency_bin, score_bin, slot_of, write_counts
from sonder.releases.registry import Registry
from tests.services.conftest import RELEASE, _another_release, build_tiny_release


@pytest.fixture
def config(tmp_path: Path) -> Path:
    release = build_tiny_release(tmp_path / "workspace")
    for name in ("release-2", "release-3", "release-4"):
        _another_release(release, name)
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tmp_path / 'workspace'}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    return file


def sonder(config: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "-c", str(config)], catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def refused(config: Path, *arguments: str) -> str:
    done: Result = CliRunner().invoke(app, [*arguments, "-c", str(config)])
    assert isinstance(done.exception, InvalidRequest | NotFound), done.output
    return str(done.exception)


def workspace(config: Path) -> Workspace:
    return Workspace.at(str(config.parent / "workspace"))


def test_a_trial_is_started_changed_and_promoted_and_each_command_says_what_follows(config: Path) -> None:
    assert "No canary has run" in sonder(config, "canary", "status")
    told = sonder(config, "canary", "start", "release-2", "--ramp", "0.01,0.05,0.25", "--ramp-minutes", "30")
    assert f"release-2 is on trial beside {RELEASE}: 1.0% of the users, then 0.01,0.05,0.25 read it." in told
    status = sonder(config, "canary", "status")
    assert "No gateway has said anything" in status
    assert "20.0% of the users read release-2" in sonder(config, "canary", "share", "0.2")
    running = Canary.read(workspace(config)).running
    assert running is not None
    assert (running.share, running.ramp, running.reason) == (0.2, (), "started by hand")
    assert "release-2 is current" in sonder(config, "canary", "promote", "--reason", "good")
    current = Registry(workspace(config)).current()
    assert current is not None
    assert (current.release, current.reason) == ("release-2", "good")
    assert "was promoted at" in sonder(config, "canary", "status")


def test_status_shows_both_arms_over_all_gateways(config: Path, tmp_path: Path) -> None:
    sonder(config, "canary", "start", "release-2", "--shadow", "--min-requests", "50")
    trial = Canary.read(workspace(config)).running
    assert trial is not None
    now_s = time.time()
    for gateway in ("a", "b"):
        slots = {
            slot_of(now_s) - back: {
                ("served", "computed"): Tally(100, 1, 0, Counter({latency_bin(0.008): 100})),
                ("candidate", "computed"): Tally(100, 50, 0, Counter({latency_bin(0.008): 100})),
            }
            for back in range(3)
        }
        scores = {arm: {"buy_7d": Counter({score_bin(0.1): 200})} for arm in ("served", "candidate")}
        counts = Counts(slots, scores, gateways=1, dropped=7)  # type: ignore[arg-type]
        write_counts(workspace(config).canary_counts(trial.id), gateway, counts, now_s=now_s)
    told = sonder(config, "canary", "status", "--json", str(tmp_path / "status.json"))
    assert "2 gateways answer" in told
    assert "the same users; 14 shadow answers were dropped" in told
    assert "A limit is broken, the gateways roll back: degraded computed: 0.49 of at most 0.02" in told
    found = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    by_name = {one["name"]: one for one in found["comparisons"]}
    assert by_name["degraded computed"]["num_candidate"] == 600
    assert by_name["psi buy_7d"]["value"] == 0.0


def test_a_release_is_served_by_its_name_and_no_more(config: Path) -> None:
    assert "current release: release-2." in sonder(config, "release", "also", "release-2")
    assert "current release: release-2, release-3." in sonder(config, "release", "also", "release-3")
    assert "4 releases would be served at once" in refused(config, "canary", "start", "release-4")
    assert "Served by name beside the current release: release-2, release-3." in sonder(config, "canary", "status")
    sonder(config, "release", "also", "release-2", "--end")
    assert "current release: nothing." in sonder(config, "release", "also", "release-3", "--end")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["start", "release-9"], "No release 'release-9'"),
        (["start", RELEASE], "is the current release"),
        (["start", "release-2", "--share", "0"], "share"),
        (["start", "release-2", "--ramp", "a,b"], "A ramp 'a,b'"),
        (["start", "release-2", "--ramp", "0.5,0.1"], "falls"),
        (["start", "release-2", "--ramp", "0.5,7"], "share"),
        (["start", "release-2", "--psi", "-1"], "psi"),
        (["start", "release-2", "--min-requests", "1"], "min_requests"),
        (["share", "0.5"], "No canary is running"),
        (["stop"], "No canary is running"),
        (["promote"], "No canary is running"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(config: Path, arguments: list[str], told: str) -> None:
    assert told in refused(config, "canary", *arguments)
    assert Canary.read(workspace(config)) == Canary()
