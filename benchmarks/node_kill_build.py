"""Whole nodes are killed while a build runs on the cluster; the release must be that of an undisturbed build.

The same work is done twice: on one node that nobody touches, and on three workers, one of which dies in every step
that is named here: the one that is doing that step's work, by SIGKILL of everything on it or by a cut cable. It comes
back, as a new node, when the step has ended.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from benchmarks.namespaces import tail
from benchmarks.processes import title_of
from benchmarks.ray_machines import ROOT, RayMachines
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.synthetic import WorldConfig, write_world
from sonder.releases.registry import Registry

PARTS = 8  # files of the log, each of which is one task
OVERRIDES = ("encoder.dim=16", "encoder.max_epochs=3", "encoder.num_heads=2", "encoder.num_workers=2",
             "prepare.num_buckets=12")  # fmt: skip
# What says when it was made, or how long it took, differs between two builds of the same.
COMPARED = ("history", "items", "releases")
TIMED = ("manifest.json", "report/index.html", "encoder/encoder.json", "report/metrics.json")
_KILLED_WITHIN_S, _STEP_WITHIN_S = 900.0, 900.0


@dataclass(frozen=True)
class Moment:
    """When a node is killed, and which."""

    step: str
    appears: str  # below .staging: by then the step is under way
    ends: str  # below .staging or the workspace: by then it is done
    title: str  # of the processes that do its work
    how: str  # SIGKILL or cut


LOGGED = {"prepare": "prepare.history", "embed": "segment", "scores": "score"}  # names of steps in the log
STEP = ".staging/build-*/steps"
PREPARE = Moment(
    "prepare", "prepare-*/scratch/read-*.json", "history/*/manifest.json", title="ray::MapBatches", how="SIGKILL"
)
MOMENTS = (
    Moment("train", "training/train-*/checkpoint_*", f"{STEP}/train.json", title="ray::RayTrainWorker", how="SIGKILL"),
    Moment(
        "embed", "build-*/release/vectors/bucket=*/part*", f"{STEP}/segment.json", title="ray::MapBatches", how="cut"
    ),
    Moment(
        "scores",
        "build-*/release/scores/training/grown/*",
        f"{STEP}/score.json",
        title="ray::RayTrainWorker",
        how="SIGKILL",
    ),
)


@dataclass
class Kill:
    """What became of one."""

    step: str
    how: str
    node: str
    processes: int  # of the node
    was_working: bool  # whether it ran a process of the step
    to_end_s: float | None = None  # from the kill to the end of the step
    noticed_s: float | None = None  # until the cluster took the node for dead
    step_s: float | None = None
    undisturbed_s: float | None = None


def write_log(folder: Path, num_users: int) -> Path:
    """A world with its log in several files -> its configuration."""
    write_world(WorldConfig(num_users=num_users, num_days=90, seed=11), Folder.at(str(folder)))
    (file,) = (folder / "events").iterdir()
    table = pq.read_table(file)
    size = -(-table.num_rows // PARTS)
    for part in range(PARTS):
        pq.write_table(table.slice(part * size, size), folder / "events" / f"day-{part}.parquet")
    file.unlink()
    return folder / "sonder.yaml"


def run_here(command: str, config: Path, workspace: Path) -> str:
    """On one node, undisturbed -> what it logged. On one core, as each worker has: sums depend on how many add up."""
    line = ["taskset", "-c", "0", sys.executable, "-m", "pipelines.cli", command, "-c", str(config), *_sets(workspace)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stderr


def run_on(machines: RayMachines, command: str, config: Path, workspace: Path, moments: Sequence[Moment]) -> list[Kill]:
    """Submitted to the cluster, disturbed at these moments."""
    log = machines.folder / f"{command}.log"
    with log.open("w") as out:
        arguments = ["submit", command, "--config", str(config), *_sets(workspace), "--address", machines.dashboard]
        job = machines.sonder(*arguments, stdout=out, stderr=subprocess.STDOUT)
        killer = _Killer(machines, workspace, moments, job)
        killer.start()
        returncode = job.wait()
        killer.join()
    if returncode or killer.error:
        raise RuntimeError(f"{command} ended with {returncode}, killer with {killer.error!r}:\n{tail(log, 60)}")
    for kill in killer.kills:
        kill.step_s = step_seconds(log.read_text()).get(LOGGED.get(kill.step, kill.step))
    return killer.kills


def step_seconds(log: str) -> dict[str, float]:
    """How long each step took, as `sonder build` logs it."""
    found = re.findall(r"^\S+ (prepare\.history|[a-z]+): .*\((\d+\.\d) s\)$", log, re.MULTILINE)
    return {name: float(seconds) for name, seconds in found}


class _Killer(threading.Thread):
    def __init__(
        self, machines: RayMachines, workspace: Path, moments: Sequence[Moment], build: subprocess.Popen[str]
    ) -> None:
        super().__init__(daemon=True)
        self.kills: list[Kill] = []
        self.error: BaseException | None = None
        self._machines, self._workspace, self._moments, self._build = machines, workspace, moments, build

    def run(self) -> None:
        try:
            for moment in self._moments:
                self.kills.append(self._kill(moment))
        except BaseException as error:
            self.error = error

    def _kill(self, moment: Moment) -> Kill:
        self._await(f".staging/{moment.appears}", _KILLED_WITHIN_S, pause_s=0.01)
        node, works = self._working(moment.title)
        at = time.time()
        kill = Kill(moment.step, moment.how, node, len(self._machines.network.processes(node)), works)
        address = self._machines.network.addresses[node]
        if moment.how == "cut":
            self._machines.network.cut(node)
        else:
            self._machines.network.kill(node)
        told(f"{moment.step}: {moment.how} of {node} ({kill.processes} processes, working: {works})")
        kill.noticed_s = self._machines.wait_for(lambda alive: address not in alive, f"{node} dead", 240)
        ended = self._await(moment.ends, _STEP_WITHIN_S, pause_s=0.05)
        kill.to_end_s = ended - at
        if moment.how == "cut":
            self._machines.network.mend(node)  # its raylet finds that it was given up, ends, and is started again
        else:
            self._machines.start(node)
        self._machines.wait_for(lambda alive: address in alive, f"{node} back")
        told(f"{moment.step}: done {kill.to_end_s:.1f} s after, {node} is back")
        return kill

    def _working(self, title: str) -> tuple[str, bool]:
        """The worker with most processes of that title, the last one where none has any."""
        counts = dict.fromkeys(self._machines.workers, 0)
        for name in counts:
            for pid in self._machines.network.processes(name):
                counts[name] += title_of(pid).startswith(title)
        node = max(counts, key=lambda name: counts[name])
        return node, counts[node] > 0

    def _await(self, pattern: str, within_s: float, pause_s: float) -> float:
        """When a file of that pattern was written."""
        deadline = time.monotonic() + within_s
        while (written := self._written(pattern)) is None:
            if self._build.poll() is not None:
                raise RuntimeError(f"the build ended before {pattern} appeared")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{pattern} did not appear within {within_s:.0f} s")
            time.sleep(pause_s)
        return written

    def _written(self, pattern: str) -> float | None:
        with suppress(FileNotFoundError):  # it is on its way to another folder
            for found in self._workspace.glob(pattern):
                return found.stat().st_mtime
        return None


def differences(one: Path, other: Path) -> list[str]:
    """Files that only one of two workspaces has, or that have other bytes; those of TIMED are only looked for."""
    found = []
    for top in COMPARED:
        here, there = (_only(workspace / top) for workspace in (one, other))
        if here is None or there is None:
            found += [f"{top} is in one only"] if here is not there else []
            continue
        names = [set(Folder.at(str(folder)).files()) for folder in (here, there)]
        found += [f"{top}/{name} is in one only" for name in sorted(names[0] ^ names[1])]
        for name in sorted(names[0] & names[1]):
            if not _is_timed(top, name) and (here / name).read_bytes() != (there / name).read_bytes():
                found.append(f"{top}/{name}")
    return found + [f"metric {name}" for name, values in _metrics(one, other) if values[0] != values[1]]


def num_files(workspace: Path) -> int:
    """Files whose bytes `differences` compares."""
    folders = [(top, _only(workspace / top)) for top in COMPARED]
    names = [(top, name) for top, folder in folders if folder for name in Folder.at(str(folder)).files()]
    return sum(not _is_timed(top, name) for top, name in names)


def _is_timed(top: str, name: str) -> bool:
    return top == "releases" and name in TIMED


def _metrics(*workspaces: Path) -> list[tuple[str, list[Any]]]:
    """Every metric with its value in each."""
    folders = [folder for workspace in workspaces if (folder := _only(workspace / "releases"))]
    measured = [orjson.loads((folder / "report" / "metrics.json").read_bytes()) for folder in folders]
    return [(name, [one.get(name) for one in measured]) for name in (measured[0] if measured else ())]


def report_build(folder: Path, *, log_users: int, build_users: int) -> dict[str, Any]:
    """The kills, on a cluster of three workers, and the same work on one node -> what happened, and what differs.

    A large log is prepared, where there is something to shuffle, and of a small one a whole release is built.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = (("prepare", log_users, (PREPARE,)), ("build", build_users, MOMENTS))
    configs = {name: write_log(folder / f"world-{name}", users) for name, users, _ in runs}
    kills: list[Kill] = []
    with RayMachines(folder / "n", workers=dict.fromkeys(("w1", "w2", "w3"), 1)) as machines:
        told("the cluster is up")
        for name, _, moments in runs:
            kills += run_on(machines, name, configs[name], folder / f"there-{name}", moments)
    told("the cluster has done its work; the undisturbed node follows")
    seconds: dict[str, float] = {}
    different, compared = [], 0
    for name, *_ in runs:
        here, there = folder / f"here-{name}", folder / f"there-{name}"
        seconds |= step_seconds(run_here(name, configs[name], here))
        different += differences(here, there)
        compared += num_files(here)
    for kill in kills:
        kill.undisturbed_s = seconds.get(LOGGED.get(kill.step, kill.step))
    there = folder / "there-build"
    return {
        "kills": [asdict(kill) for kill in kills],
        "files_compared": compared,
        "different": different,
        "releases": len(Registry(Workspace.at(str(there))).list()),
        "left_in_staging": Folder.at(str(there / ".staging")).files(),
    }


def told(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _sets(workspace: Path) -> list[str]:
    return [argument for one in (*OVERRIDES, f"workspace={workspace}") for argument in ("--set", one)]


def _only(folder: Path) -> Path | None:
    found = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    assert len(found) < 2, f"{folder} holds {len(found)}"
    return found[0] if found else None
