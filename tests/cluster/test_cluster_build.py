"""A build on three nodes is the build of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.node_kill_build import differences, num_files, write_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]
SETS = ("encoder.dim=16", "encoder.max_epochs=1", "encoder.num_heads=2", "prepare.num_buckets=3")


def build(config: Path, workspace: Path, *, address: str | None) -> str:
    """`sonder build` -> its log."""
    sets = [argument for one in (*SETS, f"workspace={workspace}") for argument in ("--set", one)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    command = [sys.executable, "-m", "pipelines.cli", "build", "-c", str(config), *sets]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1_500, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    return done.stderr


def test_a_build_on_three_nodes_makes_the_release_of_one_node(tmp_path: Path, cluster_address: str) -> None:
    config = write_log(tmp_path / "world", num_users=200)
    build(config, tmp_path / "many", address=cluster_address)
    build(config, tmp_path / "one", address=None)
    assert num_files(tmp_path / "one") > 20
    assert differences(tmp_path / "one", tmp_path / "many") == []


def test_differences_are_found(tmp_path: Path) -> None:
    """What the others rely on: a changed byte, a missing file and a changed metric."""
    for name in ("one", "other"):
        for file, content in (
            ("history/s/manifest.json", "{}"),
            ("history/s/bucket=000/part-0.parquet", "a"),
            ("items/s/manifest.json", "{}"),
            ("releases/r/report/metrics.json", '{"ndcg_at_10": 0.5}'),
            ("releases/r/vectors/bucket=000/part-0.parquet", "v"),
        ):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    one, other = tmp_path / "one", tmp_path / "other"
    assert differences(one, other) == []
    (other / "releases/r/vectors/bucket=000/part-0.parquet").write_text("w")
    (other / "history/s/bucket=000/part-0.parquet").unlink()
    (other / "releases/r/report/metrics.json").write_text('{"ndcg_at_10": 0.4}')
    assert differences(one, other) == [
        "history/bucket=000/part-0.parquet is in one only",
        "releases/vectors/bucket=000/part-0.parquet",
        "metric ndcg_at_10",
    ]
