"""Audiences over releases of a tiny log, without Ray: preview, versions, membership across releases, export."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

import pipelines.audience
from pipelines.audience import preview_audience, refresh_audiences, save_audience
from pipelines.audience_export import export_audience
from pipelines.audience_publishing import only_refresh
from sonder.core.config import SegmentsConfig, SonderConfig
from sonder.core.errors import DataError, InvalidRequest, InvalidRule, NotFound
from sonder.core.ids import bucket_of
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.history.snapshot import bucket_file, read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.membership_store import MembershipStore
from sonder.profiles.record import profile_file
from sonder.releases.registry import Registry, seal
from sonder.scoring.heads import save_heads
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.audiences import AudienceCatalogue, evaluations_of
from sonder.segments.lifecycle import derive_thresholds, lifecycle_table
from tests.tiny_log import Event, timelines_of, vocabulary_of, write_snapshot

VOCABULARY = vocabulary_of(["garden/tools", "home"])
LOG: dict[str, list[Event]] = {
    "buys early": [(day, 0, "buy") for day in (1, 2, 3)],
    "buys late": [(day, 0, "buy") for day in (41, 42, 43)],
    "buys always": [(day, 0, "buy") for day in range(1, 45)],
    "only looks": [(day, 1, "view") for day in range(1, 45)],
}
RULE = "count(buy, 10d) >= 2"


def add_release(workspace: Workspace, release_id: str, *, day: int, num_buckets: int) -> None:
    """What audiences read of a release: profiles with lifecycle, the items, no scores."""
    events = {user: [event for event in past if event[0] < day] for user, past in LOG.items()}
    timelines = timelines_of({user: past for user, past in events.items() if past})
    history = write_hashed(workspace, f"s-{release_id}", timelines, num_buckets)
    target = workspace.staging(release_id)
    VOCABULARY.save(target / "items")
    save_heads([], [], target / "scores")
    thresholds = derive_thresholds(timelines, end_us=day * DAY, config=SegmentsConfig())
    for bucket in range(num_buckets):
        users = read_timelines(history, VOCABULARY, [bucket])
        segments = lifecycle_table(users, as_of_us=day * DAY, thresholds=thresholds)
        outputs = StageOutputs(vectors=None, interests=None, affinities=None, segments=segments, scores=None)
        profiles = assemble_profiles(users, outputs, base_rates={}, as_of_us=day * DAY)
        profile_file(target / "profiles", bucket).write_table(profiles)
    seal(
        target,
        workspace,
        release_id=release_id,
        parent=None,
        snapshot=f"s-{release_id}",
        config=SonderConfig.model_validate({"events": {"path": "unused"}}),
        metrics={},
        row_counts={"profiles": len(events)},
        as_of_us=day * DAY,
    )
    Registry(workspace).promote(release_id, reason="test")


def write_hashed(workspace: Workspace, name: str, timelines: Timelines, num_buckets: int) -> Folder:
    """A snapshot whose users lie in the buckets of their digest, as `prepare` deals them."""
    history = write_snapshot(workspace, name, timelines, VOCABULARY, num_buckets=1)
    users = bucket_file(history, 0).read_table()
    buckets = bucket_of(pl.Series(users.column("user_id").to_pylist(), dtype=pl.String), num_buckets)
    for bucket in range(num_buckets):
        bucket_file(history, bucket).write_table(users.filter(pa.array(buckets == bucket)))
    manifest = read_manifest(history)
    (history / "manifest.json").write_json({**manifest, "buckets": [{"bucket": b} for b in range(num_buckets)]})
    return history


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    opened = Workspace.at(str(tmp_path / "workspace"))
    add_release(opened, "r-20", day=20, num_buckets=2)
    return opened


def stays_of(workspace: Workspace, name: str) -> list[tuple[str, int, int | None, int]]:
    """(user, day entered, day left, version), of the newest evaluation."""
    folder = evaluations_of(AudienceCatalogue(workspace.audiences).audience(name))[-1]
    files = [Folder(folder.fs, f"{folder.path}/{file}") for file in folder.files() if file.endswith(".parquet")]
    frame = pl.DataFrame(pa.concat_tables([file.read_table() for file in files])).sort("user_id", "entered_at")
    days = [frame[column].dt.epoch("us") // DAY for column in ("entered_at", "left_at")]
    return list(zip(frame["user_id"], *days, frame["definition_version"], strict=True))


def test_a_preview_counts_compares_and_saves_nothing(workspace: Workspace) -> None:
    save_audience(workspace, "lookers", "count(view, 10d) > 0 or count(buy, 19d) >= 5")
    before = workspace.audiences.files()
    preview = preview_audience(workspace, RULE)
    assert (preview["size"], preview["num_profiles"], preview["is_exact"]) == (1, 3, True)
    assert preview["sample"] == ["buys always"]
    overlap = {"audience": "lookers", "size": 2, "shared": 1, "share_of_this": 1.0, "share_of_that": 0.5}
    assert preview["overlap"] == [overlap]
    assert preview["as_of"] == "1970-01-21T00:00:00+00:00"
    assert workspace.audiences.files() == before


def test_a_rule_that_does_not_fit_the_release_is_not_saved(workspace: Workspace) -> None:
    with pytest.raises(InvalidRule, match="Did you mean 'buy'"):
        save_audience(workspace, "buyers", "count(buys, 10d) > 1")
    assert workspace.audiences.files() == []


def test_membership_goes_on_over_releases_versions_and_other_buckets(workspace: Workspace) -> None:
    save_audience(workspace, "buyers", "count(buy, 19d) >= 3")
    (first,) = refresh_audiences(workspace)
    assert (first["members"], first["entered"], first["left"]) == (2, 2, 0)
    add_release(workspace, "r-45", day=45, num_buckets=3)
    (second,) = refresh_audiences(workspace, ["buyers"])
    assert (second["members"], second["entered"], second["left"]) == (2, 1, 1)
    assert stays_of(workspace, "buyers") == [
        ("buys always", 20, None, 1),
        ("buys early", 20, 45, 1),
        ("buys late", 45, None, 1),
    ]
    assert save_audience(workspace, "buyers", "count(buy, 19d) > 3").version == 2
    (third,) = refresh_audiences(workspace)
    assert (third["version"], third["members"], third["left"]) == (2, 1, 2)
    assert stays_of(workspace, "buyers")[0] == ("buys always", 20, None, 2)


def test_the_same_refresh_does_nothing_and_a_broken_one_goes_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_audience(workspace, "buyers", RULE)
    decided = []
    update = pipelines.audience.update_members

    def once(*args: object, **kwargs: object) -> pa.Table:
        if len(decided) == 1:
            decided.append("broken")
            raise KeyboardInterrupt
        decided.append("done")
        return update(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pipelines.audience, "update_members", once)
    with pytest.raises(KeyboardInterrupt):
        refresh_audiences(workspace)
    assert evaluations_of(workspace.audiences / "buyers") == []
    assert refresh_audiences(workspace)[0]["members"] == 1
    assert decided == ["done", "broken", "done"]
    assert refresh_audiences(workspace)[0]["members"] == 1
    assert decided == ["done", "broken", "done"]


def test_an_audience_that_a_release_cannot_evaluate_says_so_and_the_others_are_counted(workspace: Workspace) -> None:
    save_audience(workspace, "buyers", RULE)
    definition = AudienceCatalogue(workspace.audiences).newest("buyers")
    (workspace.audiences / "old" / "v001.json").write_json(
        {**vars(definition), "name": "old", "rule": "score.gone > 0.5"}
    )
    buyers, old = refresh_audiences(workspace)
    assert buyers["members"] == 1
    assert "No score 'gone'" in old["problem"]
    assert "No score 'gone'" in preview_audience(workspace, RULE)["not_compared"]["old"]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_an_export_holds_who_is_in_and_refuses_a_handful(workspace: Workspace, tmp_path: Path, form: str) -> None:
    out = Folder.at(str(tmp_path / "out" / f"buyers.{form}"))
    save_audience(workspace, "buyers", "count(buy, 19d) >= 3")
    with pytest.raises(NotFound, match="refresh buyers"):
        export_audience(workspace, "buyers", out, min_size=2)
    refresh_audiences(workspace)
    with pytest.raises(InvalidRequest, match=r"2 members.*at least 3 \(audiences.min_export_size\)"):
        export_audience(workspace, "buyers", out, min_size=3)
    assert not out.exists()
    export_audience(workspace, "buyers", out, min_size=2)
    frame = pl.read_csv(out.path) if form == "csv" else pl.read_parquet(out.path)
    assert frame.columns == ["user_id", "entered_at", "as_of", "definition_version"]
    assert sorted(frame["user_id"]) == ["buys always", "buys early"]
    with pytest.raises(InvalidRequest, match=r"\.parquet or \.csv"):
        export_audience(workspace, "buyers", Folder.at(str(tmp_path / "buyers.xlsx")), min_size=1)


def test_a_second_refresh_at_the_same_time_is_refused_and_a_save_is_not(workspace: Workspace) -> None:
    save_audience(workspace, "buyers", RULE)
    with only_refresh(workspace):
        with pytest.raises(DataError, match="one refresh at a time"):
            refresh_audiences(workspace)
        assert save_audience(workspace, "lookers", "count(view, 10d) > 0").version == 1
    assert [told["members"] for told in refresh_audiences(workspace)] == [1, 1]


def test_what_serving_reads_is_ready_when_a_refresh_ends(workspace: Workspace) -> None:
    save_audience(workspace, "buyers", RULE)
    refresh_audiences(workspace)
    index = AudienceIndex.read(workspace.audiences)
    store = MembershipStore.open(workspace.membership_stores / index.members_digest)
    (told,) = store.get("buys always")
    assert (told.name, told.entered_at, told.source) == ("buyers", "1970-01-21T00:00:00+00:00", "refresh")
    assert store.get("only looks") == []
    store.close()


def test_a_refresh_killed_between_two_releases_leaves_the_membership_before_it_readable(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_audience(workspace, "buyers", "count(buy, 19d) >= 3")
    refresh_audiences(workspace)
    before = stays_of(workspace, "buyers"), AudienceIndex.read(workspace.audiences)
    add_release(workspace, "r-45", day=45, num_buckets=3)
    with monkeypatch.context() as patched:
        patched.setattr(pipelines.audience, "update_members", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            refresh_audiences(workspace)
    assert (stays_of(workspace, "buyers"), AudienceIndex.read(workspace.audiences)) == before
    export_audience(workspace, "buyers", Folder.at(str(tmp_path / "out.csv")), min_size=1)
    assert refresh_audiences(workspace)[0]["left"] == 1


@pytest.mark.ray
def test_the_tasks_of_a_large_release_give_what_this_process_gives(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    save_audience(workspace, "lookers", "count(view, 10d) > 0")
    save_audience(workspace, "buyers", RULE)
    here = preview_audience(workspace, RULE)
    monkeypatch.setattr(pipelines.audience, "SMALL_PROFILES", 2)
    assert preview_audience(workspace, RULE) == here
    refresh_audiences(workspace)
    by_tasks = [stays_of(workspace, name) for name in ("lookers", "buyers")]
    for name in ("lookers", "buyers"):
        (workspace.audiences / name / "members").remove()
    monkeypatch.undo()
    refresh_audiences(workspace)
    assert [stays_of(workspace, name) for name in ("lookers", "buyers")] == by_tasks
    assert all(by_tasks)
