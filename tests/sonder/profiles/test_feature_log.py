"""The feature log: who is drawn, what a row says, files that are whole, and a writer that never gets in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sonder.core.ids import digest_bytes
from sonder.core.storage import Folder
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.profiles import feature_log
from sonder.profiles.feature_log import LOGGED_SCHEMA, FeatureLog, logged_rows, read_feature_log
from sonder.profiles.packing import pack_timelines
from tests.tiny_log import random_log, timelines_of

TIMELINES = timelines_of(random_log(1, num_users=200, num_items=3, num_days=20))
FEATURES = np.arange(600, dtype=np.float32).reshape(200, 3)


def rows_of(share: float) -> pa.Table:
    return logged_rows(TIMELINES, FEATURES, as_of_us=10 * DAY, release="r-1", share=share)


def test_the_same_users_are_drawn_again_and_a_larger_share_holds_the_smaller() -> None:
    few, more = (set(rows_of(share)["user_id"].to_pylist()) for share in (0.2, 0.5))
    assert few < more
    assert 20 <= len(few) <= 60
    assert rows_of(0.0).num_rows == 0
    assert rows_of(1.0).num_rows == 200


def test_a_row_tells_the_history_that_was_read_and_not_what_came_later() -> None:
    rows = rows_of(1.0)
    assert rows.schema == LOGGED_SCHEMA
    past = TIMELINES.before(10 * DAY)
    assert rows["num_events"].to_pylist() == past.lengths.tolist()
    assert rows["timeline_digest"].to_pylist() == [digest_bytes(packed) for packed in pack_timelines(past)]
    assert rows["features"].to_pylist() == FEATURES.tolist()


def test_what_was_offered_is_in_whole_files_after_the_end(tmp_path: Path) -> None:
    log = FeatureLog(Folder.at(str(tmp_path / "r-1")))
    for _ in range(3):
        log.offer(rows_of(0.2))
    log.close()
    read = read_feature_log(log.folder)
    assert read.num_rows == 3 * rows_of(0.2).num_rows
    assert log.folder.files()
    assert all(name.endswith(".parquet") for name in log.folder.files())


def test_rows_beyond_the_bound_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_log, "MAX_ROWS", 250)
    log = FeatureLog(Folder.at(str(tmp_path)))
    log.offer(rows_of(1.0))
    log.offer(rows_of(1.0))
    log.close()
    assert (log.num_accepted, log.num_left_out) == (200, 200)
    assert read_feature_log(log.folder).num_rows == 200


def test_a_folder_that_cannot_be_written_loses_the_rows_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    log = FeatureLog(Folder.at(str(tmp_path / "taken")))
    log.offer(rows_of(1.0))
    log.close()
    assert log.num_left_out == 200
