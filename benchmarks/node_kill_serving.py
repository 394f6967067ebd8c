"""Whole nodes are killed while the application serves: who fails, what is lost, and how long until it is whole again.

Three workers behind a head without CPUs, gateways on two of them, every stage twice, the online store and the log of
events on a Redis server that is none of them. Each door is read and events are sent to all doors in turn
(`benchmarks.node_load`), while the nodes named in KILLS die one after the other; each comes back when the application
has healed without it. Ray's own state is kept on the same server, so that the head may die too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.namespaces import HUB
from benchmarks.node_kill_build import told
from benchmarks.processes import title_of
from benchmarks.ray_machines import HEAD, ROOT, RayMachines
from benchmarks.serving import some_users
from services.gateway.proxy import node_environment
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.profiles.redis_log import RedisLog
from sonder.releases.artefacts import Release, served_release
from sonder.releases.registry import Registry

PORT, REDIS_PORT = 8000, 6400
STAGES = ("embedding", "segmentation", "scoring", "retrieval", "refresh")
READS_PER_S, BATCHES_PER_S = 10.0, 4.0
HEALS_WITHIN_S, AFTER_S = 300.0, 5.0
# Asked from the hub: the machine itself is not in the network.
_ASK = """
import httpx, json, sys
with httpx.Client(trust_env=False, timeout=5) as http:
    for line in sys.stdin:
        try:
            answer = http.get(line.strip())
            body = answer.json() if answer.status_code == 200 else answer.text[:300]
            print(json.dumps([answer.status_code, body]), flush=True)
        except httpx.TransportError as error:
            print(json.dumps([0, type(error).__name__]), flush=True)
"""


@dataclass(frozen=True)
class Wanted:
    """Which node is to die, and how."""

    name: str
    how: str  # SIGKILL, cut, or process
    hosts: str  # title of a process on it; of a process, which is killed alone


KILLS = (
    Wanted("a node with a gateway", "SIGKILL", "ray::ServeReplica:sonder:gateway"),
    Wanted("the node with the refresh", "SIGKILL", "ray::ServeReplica:sonder:refresh"),
    Wanted("a node with a gateway, by its cable", "cut", "ray::ServeReplica:sonder:gateway"),
    Wanted("Serve's controller", "process", "ray::ServeController"),
    Wanted("the head", "SIGKILL", HEAD),
)


@dataclass
class Outcome:
    """What became of one kill."""

    name: str
    how: str
    node: str
    processes: int
    noticed_s: float | None  # until the cluster took the node for dead
    healed_s: float | None  # until as many replicas run as before and a fresh profile is whole, without the node
    back_s: float | None  # from its start until the cluster has the node again
    reads: int = 0  # from the kill until healed and AFTER_S more, through other doors that were open when it came
    reads_failed: int = 0
    longest_s: float = 0.0
    own_door_failed: int = 0  # through the node's own door
    own_door_reads: int = 0
    batches_repeated: int = 0
    doors: Sequence[str] = ()  # open at the kill: a node that came back has one again when it has a replica again
    begun_at: float = 0.0
    ended_at: float = 0.0


class Asking:
    """One process in the hub that asks what it is told."""

    def __init__(self, machines: RayMachines) -> None:
        self._process = machines.run(
            [sys.executable, "-c", _ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        )

    def get(self, url: str) -> tuple[int, Any]:
        """Status, 0 where nothing answered, and the JSON body."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{url}\n")
        self._process.stdin.flush()
        status, body = json.loads(self._process.stdout.readline())
        return status, body


class ServingMachines(RayMachines):
    """A cluster beside a Redis server, whose nodes have what `sonder node-environment` gives them."""

    store: str

    def before_start(self) -> None:
        """The server has every write on disk before it answers; it ends with the network."""
        folder = self.folder / "redis"
        folder.mkdir(parents=True)
        command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "0.0.0.0", "--protected-mode", "no"]
        command += ["--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.store = f"redis://{self.network.addresses[HUB]}:{REDIS_PORT}/0"

    def node_env(self, name: str) -> dict[str, str]:
        """With Ray's own state on the server, so that a head that died is found again, and time for that."""
        env = {**super().node_env(name), **node_environment(self.folder / name / "s")}
        env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "300"
        # A proxy takes longer than Ray's 5 s to start where everything shares two cores.
        env |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
        if name == HEAD:
            env["RAY_REDIS_ADDRESS"] = f"{self.network.addresses[HUB]}:{REDIS_PORT}"
        return env


class Application:
    """The application on a cluster, as `serve deploy` puts it there."""

    def __init__(self, machines: RayMachines, workspace: Workspace, store: str) -> None:
        self.machines, self.workspace, self.store = machines, workspace, store
        self.release = Release.open(workspace, served_release(workspace))
        self.users = some_users(self.release)[:200]
        self.asking = Asking(machines)

    def deploy(self) -> float:
        """Seconds until every door with a gateway answers."""
        config = yaml.safe_load((ROOT / "infra" / "serve" / "cluster.yaml").read_text())
        arguments = {"workspace": self.workspace.root.uri, "store": self.store, "needs_keys": False}
        config["applications"][0]["args"] = arguments
        spread = {"num_replicas": 2, "max_replicas_per_node": 1}  # so that it is known what a machine takes with it
        spread_out = [name for name in ("gateway", *STAGES) if name != "refresh"]
        config["applications"][0]["deployments"] = [{"name": name, **spread} for name in spread_out]
        file = self.machines.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        started = time.monotonic()
        command = ["serve", "deploy", str(file), "--address", self.machines.dashboard]
        deployed = self.machines.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = deployed.communicate()
        if deployed.returncode:
            raise RuntimeError(output)
        self.wait_until(self.is_whole, "the application to answer through every door", within_s=400)
        return time.monotonic() - started

    def door(self, name: str) -> str:
        return f"http://{self.machines.network.addresses[name]}:{PORT}"

    def doors(self) -> list[str]:
        """Machines on which a proxy answers."""
        names = [HEAD, *self.machines.workers]
        return [name for name in names if self.asking.get(f"{self.door(name)}/v1/release")[0] == 200]

    def replicas(self) -> dict[str, list[str]]:
        """Machines that run each deployment; by what runs, not by what Serve says."""
        found: dict[str, list[str]] = {name: [] for name in ("gateway", *STAGES)}
        for machine in self.machines.workers:
            titles = [title_of(pid) for pid in self.machines.network.processes(machine)]
            for name, machines in found.items():
                machines += [machine] * sum(title.startswith(f"ray::ServeReplica:sonder:{name}") for title in titles)
        return found

    def is_whole(self, without: str | None = None) -> bool:
        """As many replicas as were asked for, on other machines than `without`, and every door gives a fresh answer."""
        replicas = self.replicas()
        counts = {name: sum(m != without for m in machines) for name, machines in replicas.items()}
        if counts["refresh"] < 1 or any(counts[name] < 2 for name in counts if name != "refresh"):
            return False
        asked = [name for name in dict.fromkeys(replicas["gateway"]) if name != without]
        return all(self._is_fresh(name) for name in asked)

    def _is_fresh(self, door: str) -> bool:
        status, body = self.asking.get(f"{self.door(door)}/v1/users/{self.users[0]}?fresh=true")
        return status == 200 and not body.get("degraded")

    def wait_until(self, is_met: Callable[[], bool], what: str, within_s: float = HEALS_WITHIN_S) -> float:
        started = time.monotonic()
        while not is_met():
            if time.monotonic() - started > within_s:
                raise TimeoutError(f"waited {within_s:.0f} s for {what}; replicas: {self.replicas()}")
            time.sleep(0.2)
        return time.monotonic() - started

    def load(self, out: Path, doors: list[str]) -> subprocess.Popen[str]:
        """Start `benchmarks.node_load` on these doors."""
        spec = {
            "doors": {name: self.door(name) for name in doors},
            "users": self.users,
            "items": Vocabulary.load(self.release.items).item_ids.to_pylist()[:100],
            "as_of": iso_time(self.release.manifest.as_of_us),
            "reads_per_s": READS_PER_S,
            "batches_per_s": BATCHES_PER_S,
            "out": str(out),
        }
        process = self.machines.run([sys.executable, "-m", "benchmarks.node_load"], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        return process

    def strike_all(self, kills: Sequence[Wanted]) -> tuple[list[Outcome], str | None]:
        """One after the other, and why that ended early: what was seen until then counts all the same."""
        outcomes = []
        for wanted in kills:
            try:
                outcomes.append(self.strike(wanted))
            except TimeoutError as error:
                return outcomes, f"{wanted.name}: {error}"
        return outcomes, None

    def strike(self, wanted: Wanted) -> Outcome:
        """Kill, wait until the application is whole without the node, bring it back."""
        machines = self.machines
        node = self._host_of(wanted.hosts)
        pids = machines.network.processes(node)
        open_now = self.doors()
        outcome = Outcome(
            wanted.name, wanted.how, node, len(pids), None, None, None, doors=open_now, begun_at=time.time()
        )
        if wanted.how == "process":
            (pid,) = (pid for pid in pids if title_of(pid).startswith(wanted.hosts))
            machines.run(["kill", "-KILL", str(pid)]).wait()
            outcome.processes = 1
            self.wait_until(lambda: self._has_other(wanted.hosts, pid), f"another {wanted.hosts}")
        elif wanted.how == "cut":
            machines.network.cut(node)
        else:
            machines.network.kill(node)
        told(f"{wanted.name}: {wanted.how} of {node} ({outcome.processes} processes)")
        if wanted.how != "process":
            self._recover(node, wanted.how, outcome)
        else:
            outcome.healed_s = time.time() - outcome.begun_at + self.wait_until(self.is_whole, "the application")
        outcome.ended_at = time.time() + AFTER_S
        time.sleep(AFTER_S)
        told(f"{wanted.name}: healed after {outcome.healed_s}, noticed after {outcome.noticed_s}")
        return outcome

    def _recover(self, node: str, how: str, outcome: Outcome) -> None:
        machines, address = self.machines, self.machines.network.addresses[node]
        if node == HEAD:
            machines.start(HEAD)
            whole = 1 + len(machines.workers)
            outcome.back_s = machines.wait_for(lambda alive: len(alive) == whole, "the head and all its nodes")
            self.wait_until(self.is_whole, "the application with the head back")
            outcome.healed_s = time.time() - outcome.begun_at
            return
        machines.wait_for(lambda alive: address not in alive, f"{node} dead")
        outcome.noticed_s = time.time() - outcome.begun_at
        self.wait_until(lambda: self.is_whole(without=node), f"the application without {node}")
        outcome.healed_s = time.time() - outcome.begun_at
        if how == "cut":
            machines.network.mend(node)  # its raylet finds that it was given up, ends, and is started again
        else:
            machines.start(node)
        outcome.back_s = machines.wait_for(lambda alive: address in alive, f"{node} back")

    def _host_of(self, hosts: str) -> str:
        if hosts == HEAD:
            return HEAD
        for name in (*self.machines.workers, HEAD):
            if any(title_of(pid).startswith(hosts) for pid in self.machines.network.processes(name)):
                return name
        raise RuntimeError(f"no {hosts} runs anywhere")

    def _has_other(self, title: str, pid: int) -> bool:
        names = (HEAD, *self.machines.workers)
        running = [one for name in names for one in self.machines.network.processes(name)]
        return any(one != pid and title_of(one).startswith(title) for one in running)


def count_requests(outcomes: list[Outcome], lines: list[dict[str, Any]]) -> None:
    """What the journal says of the time of each kill."""
    for outcome in outcomes:
        during = [line for line in lines if outcome.begun_at <= line["t"] <= outcome.ended_at]
        reads = [line for line in during if line["kind"] == "read"]
        others = [line for line in reads if line["door"] != outcome.node and line["door"] in outcome.doors]
        own = [line for line in reads if line["door"] == outcome.node]
        outcome.reads, outcome.own_door_reads = len(others), len(own)
        outcome.reads_failed = sum(line["status"] != 200 for line in others)
        outcome.own_door_failed = sum(line["status"] != 200 for line in own)
        outcome.longest_s = max((line["s"] for line in others), default=0.0)
        outcome.batches_repeated = sum(line["kind"] == "events" and line["status"] != 202 for line in during)


def report_serving(folder: Path, workspace: str, kills: tuple[Wanted, ...] = KILLS) -> dict[str, Any]:
    """Serve the workspace's newest release on a cluster, kill what KILLS names -> what happened."""
    opened = Workspace.at(workspace)
    registry = Registry(opened)
    if registry.current() is None:
        registry.promote(registry.list()[0].id, reason="node kill")
    machines = ServingMachines(folder, workers=dict.fromkeys(("w1", "w2", "w3"), 2))
    with machines:
        told("the cluster is up")
        application = Application(machines, opened, machines.store)
        deployed_s = application.deploy()
        told(f"deployed within {deployed_s:.0f} s: {application.replicas()}, doors {application.doors()}")
        journal = folder / "journal.jsonl"
        load = application.load(journal, application.doors())
        time.sleep(AFTER_S)
        outcomes, stopped = application.strike_all(kills)
        assert load.stdin is not None
        load.stdin.close()
        load.wait(timeout=60)
        *lines, last = map(json.loads, journal.read_text().splitlines())
        count_requests(outcomes, lines)
        wrong = events_that_differ(application, last["accepted"])
        in_log = num_in_log(machines, machines.store)
    reads = [line for line in lines if line["kind"] == "read"]
    return {
        "deployed_s": deployed_s,
        "kills": [asdict(outcome) for outcome in outcomes],
        "stopped": stopped,
        "reads": len(reads),
        "reads_failed": sum(line["status"] != 200 for line in reads),
        "events_accepted": sum(last["accepted"].values()),
        "events_in_log": in_log,
        "users_with_lost_or_repeated_events": wrong,
    }


def events_that_differ(application: Application, accepted: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Users whose stored profile does not have what was accepted, a minute after the last event: expected, found."""
    deadline = time.monotonic() + 60
    (door, *_) = application.doors()
    while True:
        found = {u: application.asking.get(f"{application.door(door)}/v1/users/{u}")[1] for u in accepted}
        counts = {u: body["num_events"] if isinstance(body, dict) else -1 for u, body in found.items()}
        wrong = {user: (num, counts[user]) for user, num in accepted.items() if counts[user] != num}
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.5)


def num_in_log(machines: RayMachines, store: str) -> int:
    """Events in the log of the server, asked from within the network."""
    program = f"from benchmarks.node_kill_serving import count_log; print(count_log({store!r}))"
    asked = machines.run([sys.executable, "-c", program], stdout=subprocess.PIPE)
    answer, _ = asked.communicate()
    return int(answer)


def count_log(store: str) -> int:
    """Events in the log."""
    log = RedisLog(store)
    found = len(log.after(0, 10_000_000))
    log.close()
    return found
