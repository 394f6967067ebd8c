from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sonder.core import metrics

WRITE = """
from sonder.core import metrics
metrics.observe_refresh_lag(0.2)
metrics.set_dirty_users(5)
from prometheus_client import Counter
Counter("ray_something", "of another package").inc()
if __import__("sys").argv[1] == "read":
    print(metrics.exposition().decode())
"""


def test_names_carry_the_suffixes_that_prometheus_sees() -> None:
    names = metrics.metric_names()
    assert {"sonder_request_seconds_bucket", "sonder_degraded_answers_total", "sonder_store_bytes"} <= names
    assert "sonder_store_bytes_total" not in names


def test_no_metric_has_a_label_that_names_a_user() -> None:
    labels = {label for metric in metrics.REGISTRY._names_to_collectors.values() for label in metric._labelnames}  # type: ignore[attr-defined]
    assert labels == {
        *("method", "route", "status", "stage", "outcome", "batch", "release", "version"),
        *("arm", "kind"),  # of a canary
    }


def test_a_new_release_takes_the_place_of_the_old_one() -> None:
    metrics.set_release("r-old", "1", num_profiles=3)
    metrics.set_release("r-new", "1", num_profiles=4)
    text = metrics.exposition().decode()
    assert 'sonder_release_info{release="r-old",version="1"} 0.0' in text
    assert 'sonder_release_info{release="r-new",version="1"} 1.0' in text
    assert "sonder_store_profiles 4.0" in text


def test_processes_of_a_node_are_added_up_and_gauges_of_ended_ones_forgotten(tmp_path: Path) -> None:
    environment = {**os.environ, metrics.FOLDER: str(tmp_path)}
    texts = [
        subprocess.run([sys.executable, "-c", WRITE, what], env=environment, check=True, capture_output=True, text=True)
        for what in ("write", "read")
    ]
    text = texts[-1].stdout
    assert "sonder_refresh_lag_seconds_count 2.0" in text
    assert "sonder_dirty_users 5.0" in text  # of the process that lives
    assert "ray_something" not in text
