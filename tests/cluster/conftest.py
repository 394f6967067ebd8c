"""A cluster of three nodes on this machine, and whether there can be machines in namespaces of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.namespaces import why_not

ROOT = Path(__file__).parents[2]
# Runs as long as the fixture does: it prints the address, and ends its nodes when its input ends.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150_000_000})
for _ in range(2):
    cluster.add_node(num_cpus=2, object_store_memory=150_000_000)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """Address of a head without CPUs and two workers of `ray.cluster_utils.Cluster`, in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short, for socket paths
        command = [sys.executable, "-c", _CLUSTER]
        environment = {**os.environ, "RAY_TMPDIR": folder}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        ) as cluster:
            assert cluster.stdin is not None
            assert cluster.stdout is not None
            try:
                address = next((line.strip() for line in cluster.stdout if line[0].isdigit()), "")
                assert address, f"the cluster ended with {cluster.poll()}"
                yield address
            finally:
                cluster.stdin.close()
                cluster.wait(timeout=60)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where machines of their own cannot be made."""
    missing = why_not()
    if missing is not None:
        pytest.skip(missing)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose sockets have paths that are short enough."""
    with tempfile.TemporaryDirectory(prefix="sc", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
