"""What goes wrong in a worker reaches the command line as one sentence, with all its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.bucket_tasks import over_buckets
from pipelines.cli import main
from pipelines.ray_runtime import WORKER_ENV, cores_of_worker, worker_errors
from sonder.core.errors import ArtefactMismatch, ConfigurationError, DataError

pytestmark = pytest.mark.ray


class Failing:
    """A bucket task that fails at one bucket."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, bucket: int) -> dict[str, Any]:
        if bucket == 1:
            raise self.error
        return {"bucket": bucket}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_bucket_task_comes_out_whole(ray_session: None, num_workers: int) -> None:
    error = ArtefactMismatch("The digest is d1", expected="d2", do="Build again.")
    with pytest.raises(ArtefactMismatch) as raised:
        over_buckets(Failing, {"error": error}, [0, 1, 2], num_workers=num_workers)
    assert type(raised.value) is ArtefactMismatch
    assert (raised.value.found, raised.value.expected, raised.value.do) == (error.found, error.expected, error.do)
    assert str(raised.value) == "The digest is d1. Expected: d2. Build again."


def test_a_bug_in_a_bucket_task_stays_what_it_is_with_its_trace(ray_session: None) -> None:
    with pytest.raises(ZeroDivisionError, match="in __call__"):
        over_buckets(Failing, {"error": ZeroDivisionError("by hand")}, [1], num_workers=1)


def fail_to_train(arguments: dict[str, Any]) -> None:
    raise ConfigurationError("A batch of 0", expected="at least 1", do="Set encoder.batch_size.")


def test_an_error_of_a_training_worker_comes_out_whole(ray_session: None, tmp_path: Path) -> None:
    trainer = TorchTrainer(
        fail_to_train,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="failing", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=0)),
    )
    with pytest.raises(ConfigurationError) as raised, worker_errors():
        trainer.fit()
    assert str(raised.value) == "A batch of 0. Expected: at least 1. Set encoder.batch_size."


def test_the_setting_that_lets_errors_through_ends_with_the_block(ray_session: None) -> None:
    before = ray.data.DataContext.get_current()
    with worker_errors():
        assert ray.data.DataContext.get_current().raise_original_map_exception
    assert ray.data.DataContext.get_current() is before
    assert not before.raise_original_map_exception


# -- through the command -------------------------------------------------------------------------------------------


def write_log(folder: Path, *, num_bad: int) -> Path:
    """200 events, of which some have no user, and a configuration for them."""
    folder.mkdir()
    log = pl.DataFrame(
        {
            "user_id": [f"u{row % 9}" for row in range(200)],
            "item_id": [None if row < num_bad else f"item-{row * 7919 % 50:03d}" for row in range(200)],
            "timestamp": [1_750_000_000 + 60 * row for row in range(200)],
        }
    )
    log.write_parquet(folder / "log.parquet", compression="snappy")
    (folder / "sonder.yaml").write_text(
        f"workspace: {folder / 'w'}\nevents: {{path: {folder / 'log.parquet'}, action: view}}\n", encoding="utf-8"
    )
    return folder


def sentence(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `sonder prepare` says when it fails."""
    monkeypatch.setattr(sys, "argv", ["sonder", "prepare", "--config", str(folder / "sonder.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    return capsys.readouterr().err.strip()


def test_too_many_bad_rows_are_one_sentence(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = sentence(write_log(tmp_path / "log", num_bad=50), monkeypatch, capsys)
    assert told.startswith("Too many bad rows. 50 of 200 rows (25 %) are bad: 50 missing_id.")
    assert len(told.splitlines()) == 1


def test_a_damaged_page_that_a_worker_meets_is_one_sentence_with_the_name_of_the_file(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_log(tmp_path / "log", num_bad=0)
    file = folder / "log.parquet"
    content = bytearray(file.read_bytes())
    content[20:220] = b"\xff" * 200  # pages come first, the footer last
    file.write_bytes(content)
    told = sentence(folder, monkeypatch, capsys)
    assert told.startswith(f"{DataError.title}. {file} cannot be read to its end: ")
    assert "Expected: a whole Parquet file." in told
    assert len(told.splitlines()) == 1


def test_a_worker_has_its_share_of_the_cores_of_its_own_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the driver's node, nor a share for workers that are elsewhere."""
    shares = {}
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for here in (1, 3, 16):
        context = SimpleNamespace(get_local_world_size=lambda here=here: here)
        monkeypatch.setattr("ray.train.get_context", lambda context=context: context)
        shares[here] = cores_of_worker()
    assert shares == {1: 8, 3: 2, 16: 1}


def test_a_worker_takes_no_more_cores_than_its_node_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    nodes = [{"NodeID": "there", "Resources": {"CPU": 32.0}}, {"NodeID": "here", "Resources": {"CPU": 6.0}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_local_world_size=lambda: 2))
    assert cores_of_worker() == 3


ENVIRONMENTS = """
import json
import pyarrow as pa
import ray.data
from pipelines.prepare_tasks import rows_of
from pipelines.ray_runtime import BEFORE_A_SHUFFLE, WORKER_ENV, ensure_ray

def named(column):
    import os, pyarrow as pa, ray
    names = sorted(name for name in os.environ if name in WORKER_ENV)
    told = [f"{ray.get_runtime_context().get_runtime_env_string()} {names}"]
    return lambda table: table.append_column(column, pa.array(told * table.num_rows))

ensure_ray()
read = lambda table: named("read")(table)
write = lambda table: named("written")(table)
rows = ray.data.from_items([{"key": key} for key in range(4)]).map_batches(
    read, batch_format="pyarrow", runtime_env=BEFORE_A_SHUFFLE
)
written = rows_of(rows.repartition(2, keys=["key"]).map_batches(write, batch_format="pyarrow", batch_size=None))
print(json.dumps(sorted({row[name] for row in written for name in ("read", "written")})))
"""


def test_before_and_after_a_shuffle_tasks_share_their_processes() -> None:
    """Ray tells processes apart by the text of their environment."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", ENVIRONMENTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (told,) = json.loads(done.stdout.splitlines()[-1])
    assert all(name in told for name in WORKER_ENV)
