"""Releases asked by probes: as of a moment that no encoder has seen the end of, on the same users, or refused."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipelines import probe, terminal_probe
from pipelines.bucket_tasks import over_buckets
from pipelines.cli import app
from pipelines.probe import _ask, _vectors, compare_releases_by_probes, probe_release, settle_moment, trained_until_us
from sonder.core.config import SonderConfig
from sonder.core.errors import InvalidRequest
from sonder.core.storage import MANIFEST
from sonder.core.workspace import Workspace
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.vocabulary import Vocabulary
from sonder.releases.registry import Registry
from tests.probed import (
    EARLY,
    LATE,
    LOG,
    NUM_ITEMS,
    TEST_DAYS,
    log_until,
    make_release,
    opened,
    two_releases,
    with_prices,
)
from tests.tiny_log import Event, timelines_of, write_snapshot


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SonderConfig:
    return two_releases(tmp_path_factory.mktemp("probe"))


def test_a_release_is_probed_as_of_the_start_of_its_test_window(config: SonderConfig) -> None:
    told = probe_release(config, "r-late", num_workers=0)
    end_us = int(log_until(LATE).times_us.max()) + 1
    assert told["cutoff_us"] == max(end_us - TEST_DAYS * DAY, trained_until_us(opened(config, "r-late")))
    assert told["snapshot"] == "late"
    assert told["sampling"] is None
    assert told["users"] == log_until(LATE).num_users
    names = {"churn", "activity", "category_propensity", "item_propensity", "value"}
    assert set(told["questions"]) | set(told["refused"]) == names
    assert {"activity", "category_propensity"} <= set(told["questions"])
    assert json.loads(json.dumps(told))["metrics"] == told["metrics"]
    assert not [name for name in Workspace.at(config.workspace).staging("").files() if "probe-" in name]
    again = probe_release(config, "r-late", num_workers=0)
    assert again == told


def test_a_sample_of_users_is_told(config: SonderConfig) -> None:
    told = probe_release(config, "r-late", num_workers=0, max_users=150)
    assert told["users"] == 150
    assert told["sampling"] == f"150 of {log_until(LATE).num_users} users, drawn by a digest of their id"


def test_no_vector_changes_with_the_future(config: SonderConfig) -> None:
    release = opened(config, "r-late")
    moment = settle_moment(release, [release])
    changed: dict[str, list[Event]] = {
        user: [(day, (item + 5) % NUM_ITEMS, "buy") if day * DAY >= moment.cutoff_us else (day, item, action)
               for day, item, action in events]
        for user, events in LOG.items()
    }  # fmt: skip
    workspace = release.workspace
    vocabulary = Vocabulary.load(workspace.items("late"))
    write_snapshot(workspace, "changed", with_prices(timelines_of(changed)), vocabulary)
    questions, _ = _ask(workspace, moment, 1_000)
    others, _ = _ask(workspace, replace(moment, snapshot="changed"), 1_000)
    assert questions.digest != others.digest
    here = _vectors(release, moment, questions.user_ids, 0, 1_000)
    there = _vectors(release, replace(moment, snapshot="changed"), questions.user_ids, 0, 1_000)
    assert np.any(here != 0, axis=1).mean() > 0.5
    np.testing.assert_array_equal(here, there)


def test_two_releases_are_asked_the_same_on_the_candidates_snapshot(config: SonderConfig) -> None:
    told = compare_releases_by_probes(config, "r-late", "r-early", num_workers=0)
    assert told["snapshot"] == "late"
    late, early = (told["releases"][name] for name in ("r-late", "r-early"))
    assert late["users"] == early["users"]
    for name, question in late["questions"].items():
        assert early["questions"][name]["readers"]["linear"]["rfm"] == question["readers"]["linear"]["rfm"]
        metric = question["metric"]
        difference = told["differences"]["questions"][name]["linear"]["vector"][metric]["value"]
        values = [side["questions"][name]["readers"]["linear"]["vector"][metric]["value"] for side in (late, early)]
        assert difference == pytest.approx(values[0] - values[1])
    assert json.loads(json.dumps(told))


def test_beside_itself_a_release_is_not_better(config: SonderConfig) -> None:
    told = compare_releases_by_probes(config, "r-late", "r-late", num_workers=0)
    for reader in ("linear", "network"):
        assert told["differences"]["score"][reader]["vector"]["value"] == 0
        assert told["differences"]["borda"][reader]["clear"] == 0


def test_the_cutoff_is_never_before_what_an_encoder_was_trained_on(config: SonderConfig) -> None:
    """The early snapshot ends on day 70, and the encoder of `late` was trained on events up to then."""
    with pytest.raises(InvalidRequest, match="r-late was trained on events up to"):
        compare_releases_by_probes(config, "r-early", "r-late", num_workers=0)
    short = make_release(config, "r-short", "late", LATE, test_days=4)
    late = opened(config, "r-late")
    moment = settle_moment(late, [late, short])
    assert moment.cutoff_us == trained_until_us(short) == (LATE - 4) * DAY
    assert moment.within_days == 3  # whole days up to the last event


def test_leave_one_out_has_seen_every_event_and_is_refused(config: SonderConfig) -> None:
    release = make_release(config, "r-loo", "late", LATE, protocol="leave_one_out")
    assert trained_until_us(release) == LATE * DAY
    with pytest.raises(InvalidRequest, match="no encoder has seen"):
        probe_release(config, "r-loo", num_workers=0)


def test_carried_models_are_as_old_as_their_training(config: SonderConfig) -> None:
    made = {"fitted_as_of_us": EARLY * DAY}
    carried = make_release(config, "r-carried", "late", LATE, increment=made)
    assert trained_until_us(carried) == (EARLY - TEST_DAYS) * DAY
    moment = settle_moment(carried, [carried])
    assert moment.within_days == TEST_DAYS  # the newest window, though an older one would be no leak


def test_weights_have_seen_what_the_weights_before_them_saw(config: SonderConfig) -> None:
    make_release(config, "r-root", "late", LATE, test_days=4)
    warm = make_release(config, "r-warm", "late", LATE, training={"parent": "r-root"})
    assert trained_until_us(warm) == (LATE - 4) * DAY
    orphan = make_release(config, "r-orphan", "late", LATE, training={"parent": "r-gone"})
    with pytest.raises(InvalidRequest, match="r-gone, which is gone"):
        trained_until_us(orphan)


def test_an_order_without_time_is_refused(config: SonderConfig) -> None:
    workspace = Workspace.at(config.workspace)
    vocabulary = Vocabulary.load(workspace.items("late"))
    history = write_snapshot(workspace, "ordinal", log_until(LATE), vocabulary)
    (history / MANIFEST).write_json((history / MANIFEST).read_json() | {"is_ordinal": True})
    make_release(config, "r-ordinal", "ordinal", LATE)
    with pytest.raises(InvalidRequest, match="order but no time"):
        probe_release(config, "r-ordinal", num_workers=0)


def test_the_tables_show_every_question_and_refusal(
    config: SonderConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal_probe, "console", Console(width=220, highlight=False))
    told = probe_release(config, "r-late", num_workers=0)
    terminal_probe.show_probes(told)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*told["questions"], *told["refused"], "r-late", told["cutoff"][:10]))
    compared = compare_releases_by_probes(config, "r-late", "r-early", num_workers=0)
    terminal_probe.show_comparison(compared)
    shown = capsys.readouterr().out
    assert "Questions answered better" in shown
    assert "within chance" in shown


def test_the_commands_of_the_guide_run(
    config: SonderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Registry(Workspace.at(config.workspace)).promote("r-early", reason="test")
    file = tmp_path / "sonder.yaml"
    file.write_text(
        f"workspace: {config.workspace}\nevents: {{path: unused}}\nevaluation: {{test_days: {TEST_DAYS}}}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal_probe, "console", Console(width=220, highlight=False))
    monkeypatch.setattr(probe, "over_buckets", lambda *given, num_workers=None: over_buckets(*given, num_workers=0))
    guide = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
    commands = re.findall(r"^sonder (probe .+)$", guide, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        app(shlex.split(command.replace("RELEASE", "r-late")), standalone_mode=False)
    shown = capsys.readouterr().out
    assert "r-late against r-early" in shown
    written = json.loads((tmp_path / "probes.json").read_text(encoding="utf-8"))
    assert (written["candidate"], written["current"]) == ("r-late", "r-early")
