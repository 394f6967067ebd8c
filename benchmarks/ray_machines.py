"""A Ray cluster of real raylets, one on each machine of a `Network`: its own address, its own folder, one token.

The head has no CPUs, as on a cluster of its own machines; workers have as many logical ones as they are told, more than
there are cores. All machines see this machine's disk: it stands for the shared file system of the workspace. What a
node keeps for itself (Ray's sessions, HAProxy's files, SONDER_NODE_FOLDER) lies in a folder per machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.namespaces import HUB, Network, tail
from services.gateway.proxy import SILENCE

ROOT = Path(__file__).parents[1]
HEAD = "head"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
STARTS_WITHIN_S = 600.0
_KEPT = ("HOME", "LANG", "LC_ALL", "TMPDIR", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# With free ports a raylet waits 15 s for its agent to tell which, and dies: too short where all share two cores.
_FIXED_PORTS = ("--dashboard-agent-grpc-port=52366", "--dashboard-agent-listen-port=52365",
                "--runtime-env-agent-port=52367", "--metrics-export-port=52368")  # fmt: skip
_SUPERVISED = 'until "$@"; do sleep 1; done'
# Runs on the head as long as the cluster does: who is alive, whenever that changes.
_WATCHER = """
import json, ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
told = None
while True:
    alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if alive != told:
        print("alive", json.dumps(alive), flush=True)
        told = alive
    time.sleep(0.2)
"""


class RayMachines:
    """Use as a context. `folder` is short: paths of sockets are."""

    def __init__(self, folder: Path, *, workers: Mapping[str, int], env: Mapping[str, str] | None = None) -> None:
        """`workers`: logical CPUs by name."""
        self.network, self.folder, self.workers = Network(), folder, dict(workers)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "libs"), str(ROOT)]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
            "OMP_NUM_THREADS": "1",
            **SILENCE,
            **(env or {}),
        }
        self._started: set[str] = set()
        self._alive: list[str] = []

    def __enter__(self) -> RayMachines:
        self.network.__enter__()
        try:
            self.before_start()
            self.start(HEAD)
            threading.Thread(target=self._watch, daemon=True).start()
            self.wait_for(lambda alive: len(alive) == 1, "the head")  # nodes that come before it give up
            for name in self.workers:  # one by one: Ray gives a node up that has not started within 30 s
                self.start(name)
                self.wait_for(lambda alive: self.network.addresses[name] in alive, name)  # noqa: B023
        except BaseException:
            self.network.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.__exit__(kind, error, trace)

    def before_start(self) -> None:
        """What the whole network needs before the first node."""

    @property
    def gcs(self) -> str:
        return f"{self.network.addresses[HEAD]}:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.network.addresses[HEAD]}:{DASHBOARD_PORT}"

    def node_env(self, name: str) -> dict[str, str]:
        """What `ray start` on a machine gets; a machine that comes back gets the same."""
        return {**self.env, "SONDER_NODE_FOLDER": str(self.folder / name / "sonder")}

    def start(self, name: str) -> None:
        """`ray start --block`, again when it ends, as a supervisor would; also of a machine that was killed."""
        address = self.network.addresses.get(name) or self.network.add(name)
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        command = ["sh", "-c", _SUPERVISED, "sh", "ray", "start", "--block", "--disable-usage-stats",
                   f"--node-ip-address={address}", f"--temp-dir={folder / 'ray'}",
                   "--object-store-memory=200000000", *_FIXED_PORTS]  # fmt: skip
        if name == HEAD:
            # Ray looks for a head that it remembers among the processes of the machine, where those of all nodes are
            # here, and would not start a second one.
            (folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)
            command += ["--head", f"--port={GCS_PORT}", "--num-cpus=0", f"--dashboard-host={address}",
                        f"--dashboard-port={DASHBOARD_PORT}"]  # fmt: skip
        else:
            command += [f"--address={self.gcs}", f"--num-cpus={self.workers[name]}"]
        with (folder / "ray-start.log").open("a") as log:
            self.network.start(name, command, self.node_env(name), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._started.add(name)

    def run(self, command: Sequence[str], *, on: str = HUB, **popen: Any) -> subprocess.Popen[str]:
        """A command of ours with the cluster's token."""
        return self.network.start(on, command, self.env, **popen)

    def sonder(self, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        return self.run([sys.executable, "-m", "pipelines.cli", *arguments], **popen)

    def _watch(self) -> None:
        """Keep `alive` up to date; a watcher whose head is gone is followed by another."""
        while HEAD in self.network.addresses:
            watcher = self.run([sys.executable, "-c", _WATCHER, self.gcs], on=HEAD, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
            assert watcher.stdout is not None
            for line in watcher.stdout:
                if line.startswith("alive "):  # Ray speaks there too
                    self._alive = json.loads(line.removeprefix("alive "))
            watcher.wait()
            self._alive = []
            time.sleep(0.5)

    def alive(self) -> list[str]:
        """Addresses of the nodes that the cluster takes for alive, none where it does not answer."""
        return self._alive

    def wait_for(self, is_met: Callable[[list[str]], bool], what: str, within_s: float = STARTS_WITHIN_S) -> float:
        """Seconds until the nodes alive are as wished."""
        started = time.monotonic()
        while time.monotonic() - started < within_s:
            alive = self.alive()
            if alive and is_met(alive):
                return time.monotonic() - started
            time.sleep(0.1)
        logs = "\n".join(f"{name}:\n{tail(self.folder / name / 'ray-start.log')}" for name in sorted(self._started))
        raise TimeoutError(f"not within {within_s:.0f} s: {what}; alive: {self.alive()}\n{logs}")
