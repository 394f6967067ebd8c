"""The README's own commands, run as written in an empty folder on a log that Sonder did not make the names of."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from sonder.client import Client
from tests.hanging import PROCESS_HANGS_AFTER_S

ROOT = Path(__file__).parents[2]
SONDER = Path(sys.executable).parent / "sonder"
COMMAND = re.compile(r"^\.venv/bin/sonder (.+?)(?:\s+#.*)?$", flags=re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shop.csv`: the events of a small world under other names, one row in fifty spoilt."""
    from sonder.core.storage import Folder
    from sonder.events.synthetic import WorldConfig, write_world

    folder = tmp_path_factory.mktemp("afternoon")
    write_world(WorldConfig(num_users=300, num_days=90, seed=3), Folder.at(str(folder / "world")))
    events = pl.read_parquet(str(folder / "world" / "events" / "*.parquet"))
    rows = pl.int_range(pl.len())
    events.select(
        customer="user_id",
        product="item_id",
        what="action",
        when=pl.when(rows % 200 == 7)
        .then(pl.lit("soon"))
        .otherwise(pl.col("timestamp").dt.to_string("%Y-%m-%d %H:%M:%S")),
        price="value",
    ).write_csv(folder / "shop.csv")
    return folder


def sonder(place: Path, command: str, timeout_s: float = PROCESS_HANGS_AFTER_S) -> str:
    done = subprocess.run(
        [SONDER, *shlex.split(command)], cwd=place, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_afternoon_with_ones_own_log(place: Path) -> None:
    commands = COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    names = ["init", "build", "profile", "serve", "submit", "lifecycle", "audience", "lookalike"]
    names += ["target", "forget", "build", "build", "release", "canary", "adopt", "experiment", "backfill"]
    assert [command.split()[0] for command in commands] == names
    init, build, profile, serve, _, lifecycle, preview, lookalike, target, forget, *later = commands
    nightly, weekly, check, canary, adopt, experiment, backfill = later  # and test_submit.py submits

    shown = sonder(place, init.replace("LOG", "shop.csv"))
    assert "customer" in (place / "sonder.yaml").read_text(encoding="utf-8")
    assert "u0" in shown
    config = yaml.safe_load((place / "sonder.yaml").read_text(encoding="utf-8"))
    config["encoder"] = {"max_epochs": 1}  # the only thing that the afternoon has more of than this test
    (place / "sonder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    built = sonder(place, build)
    assert "item-kNN" in built
    users = pl.read_parquet(str(place / "workspace" / "releases" / "r-*" / "profiles" / "*" / "*.parquet"))
    user_id = users.sort("num_events")["user_id"][-1]
    assert f"User {user_id}" in sonder(place, profile.replace("USER", user_id))
    assert sonder(place, build) == built  # at once, and the same
    assert "cohort" in sonder(place, lifecycle).lower()
    assert "buy" in sonder(place, preview)
    users.sort("num_events", descending=True).head(60).select("user_id").write_csv(place / "best.csv")
    sonder(place, lookalike.replace("5000", "50"))
    grown = pl.read_csv(place / "more.csv")
    assert grown.height == 50
    assert not set(grown["user_id"]) & set(users.sort("num_events", descending=True).head(60)["user_id"])
    task = config["scores"][0]["name"]  # so few users may be too few for churn
    assert "gain" in sonder(place, target.replace("churn_60d", task)).lower()
    forgotten = users.sort("num_events")["user_id"][0]
    assert "Erased" in sonder(place, forget.replace("USER", forgotten))
    for command in (nightly, weekly):
        sonder(place, command)
        newest = max((place / "workspace" / "releases").glob("r-*"), key=lambda release: release.stat().st_mtime)
        assert forgotten not in pl.read_parquet(str(newest / "profiles" / "*" / "*.parquet"))["user_id"]
    assert newest.name in sonder(place, check.replace("RELEASE", newest.name))
    assert "5.0% of the users" in sonder(place, canary.replace("RELEASE", newest.name))
    sonder(place, "canary stop --reason seen")  # it and an experiment would both choose a user's release
    assert "Findings" in sonder(place, adopt.replace("RELEASE", newest.name))
    assert (place / "adopt.html").exists()
    assert "100.0% of the users" in sonder(place, experiment)
    assert "is stopped" in sonder(place, f"experiment stop adopt-{newest.name}")
    sonder(place, backfill.replace("2025-03-31", "2025-03-02"))
    days = (place / "workspace" / "backfills").glob("*/as_of=*/manifest.json")
    assert sorted(day.parent.name for day in days) == ["as_of=2025-03-01", "as_of=2025-03-02"]

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [SONDER, *serve.split(), "--port", str(port)]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                deadline = time.monotonic() + PROCESS_HANGS_AFTER_S
                while not client.is_ready():
                    assert server.poll() is None, server.communicate()[1][-3000:]
                    assert time.monotonic() < deadline, "never ready"
                    time.sleep(0.5)
                assert client.profile(user_id)["user_id"] == user_id
                assert len(client.recommendations(user_id, k=3)["recommendations"]) == 3
        finally:
            server.send_signal(signal.SIGINT)
            _, told = server.communicate(timeout=120)
    assert server.returncode in (0, 130), told[-2000:]
    assert "Traceback" not in told
