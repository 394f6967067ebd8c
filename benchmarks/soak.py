"""Hours of mixed load on the running application: does anything fail, does memory stay where it is?

    make soak
    python -m benchmarks.soak CONFIG [--seconds 3600] [--reads 150] [--events 20]

CONFIG's workspace has a promoted release; a copy of it is served with two gateways. On Poisson schedules arrive stored
reads, and a tenth as many each of fresh profiles, recommendations and batches of 32; events come in batches of 5 for
2,000 users, so that the refresh works all the time. Once a minute the anonymous memory (RssAnon: without pages of the
store's file, which the kernel takes back) of every process of the application is added up by part.
Growth is the Theil-Sen slope over the minutes after the first sixth, which is left for caches to fill. Prints a
Markdown report and ends in one JSON line; exit status 1 where an answer was not 2xx, an accepted event is missing in
the end, or the sum of all parts grew by more than MAX_GROWTH of itself an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scipy.stats import theilslopes

from benchmarks import chaos
from benchmarks.processes import with_descendants
from benchmarks.serving import some_users
from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.releases.artefacts import Release, served_release

MAX_GROWTH = 0.05  # of the whole, an hour
SAMPLE_S = 60.0


def part_of(command: str) -> str:
    """What a process is to the application; a Ray worker names itself after its actor."""
    for prefix in ("ray::ServeReplica:sonder:", "ray::"):
        if command.startswith(prefix):
            return re.split(r"[\s\0.:]", command.removeprefix(prefix), maxsplit=1)[0]
    names = ("haproxy", "gcs_server", "raylet")
    return next((name for name in names if name in command.split("\0")[0]), "other processes of Ray")


def memory_mib() -> dict[str, float]:
    """Anonymous memory of each part, below this process and without it."""
    found: dict[str, float] = defaultdict(float)
    for pid in with_descendants({os.getpid()}) - {os.getpid()}:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        line = next((line for line in status.splitlines() if line.startswith("RssAnon:")), None)
        if line is not None and "benchmarks.http_load" not in command:
            found[part_of(command)] += int(line.split()[1]) / 1024
    return dict(found)


def readers(port: int, users: list[str], reads: float, seconds: float) -> dict[str, subprocess.Popen[str]]:
    batch = {"user_ids": users[:32]}
    wanted: dict[str, tuple[list[Any], float]] = {
        "stored reads": ([f"GET /v1/users/{user}" for user in users], reads),
        "fresh profiles": ([f"GET /v1/users/{user}?fresh=true" for user in users], reads / 10),
        "recommendations": ([f"GET /v1/users/{user}/recommendations?k=20" for user in users], reads / 10),
        "batches of 32": ([["POST", "/v1/users:batchGet", batch]], reads / 10),
    }
    running = {}
    for name, (requests, rate) in wanted.items():
        spec = {"port": port, "requests": requests, "rate": rate, "seconds": seconds, "connections": 16}
        command = [sys.executable, "-m", "benchmarks.http_load"]
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stdin = running[name].stdin
        assert stdin is not None
        stdin.write(json.dumps(spec))
        stdin.close()
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--reads", type=float, default=150.0)
    parser.add_argument("--events", type=float, default=20.0)
    options = parser.parse_args()
    source = Workspace.at(load(options.config).workspace)
    from services.gateway.proxy import free_ports
    from services.gateway.start import started

    with tempfile.TemporaryDirectory(dir=Path(source.root.path).parent) as folder:
        shutil.copytree(source.root.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store", "log"))
        release = Release.open(Workspace.at(folder), served_release(Workspace.at(folder)))
        users, items = some_users(release), Vocabulary.load(release.items).item_ids.to_pylist()[:200]
        (port,) = free_ports(1)
        with started(folder, port=port, release=release.id, gateways=2) as url:
            start = datetime.fromtimestamp(release.manifest.as_of_us / 1e6, tz=UTC) + timedelta(seconds=1)
            events = chaos.Events(url, items, start, options.events, num_users=2_000)
            events.start()
            running = readers(port, users, options.reads, options.seconds)
            began, samples = time.monotonic(), list[tuple[float, dict[str, float]]]()
            while any(process.poll() is None for process in running.values()):
                samples.append(((time.monotonic() - began) / 3600, memory_mib()))
                hours, found = samples[-1]
                print(f"{60 * hours:.0f} min: {sum(found.values()):,.0f} MiB", file=sys.stderr, flush=True)
                time.sleep(min(SAMPLE_S, options.seconds / 30))
            samples.pop()  # the load may have ended in it
            events.stop()
            answers = {name: json.loads(process.stdout.read()) for name, process in running.items() if process.stdout}
            wrong = chaos.events_in_profiles(url, events.accepted)
    report(answers, samples, events, wrong)


def report(
    answers: dict[str, Any], samples: list[tuple[float, dict[str, float]]], events: chaos.Events, wrong: dict[str, Any]
) -> None:
    """Print the tables and the line; exit with 1 where something is not as it must be."""
    print(
        "| load | answers | not 2xx | broken connections | p50 ms | p99 ms | most ms |\n|---|---|---|---|---|---|---|"
    )
    failed = 0
    for name, told in answers.items():
        bad = told["n"] - sum(count for status, count in told["statuses"].items() if status.startswith("2"))
        failed += bad + told["errors"]
        q = told["latency_ms"]
        print(f"| {name} | {told['n']:,} | {bad} | {told['errors']} | {q['p50']} | {q['p99']} | {q['max']} |")
    steady = samples[len(samples) // 6 :]
    hours = [at for at, _ in steady]
    parts = sorted({part for _, found in steady for part in found})
    print("\n| part | MiB after the first sixth | at the end | growth, MiB an hour |\n|---|---|---|---|")
    for part in [*parts, "all"]:
        sums = [sum(found.values()) if part == "all" else found.get(part, 0.0) for _, found in steady]
        slope = float(theilslopes(sums, hours).slope)
        print(f"| {part} | {sums[0]:,.0f} | {sums[-1]:,.0f} | {slope:+.1f} |")
    accepted = sum(events.accepted.values())
    print(f"\n{accepted:,} events accepted; {len(wrong)} users have another number in their stored profile.")
    line = {"hours": round(samples[-1][0], 2), "answers": sum(told["n"] for told in answers.values())}
    line |= {"failed": failed, "events": accepted, "users_with_lost_or_repeated_events": len(wrong)}
    line |= {"mib_at_end": round(sums[-1]), "growth_mib_per_hour": round(slope, 1)}
    print(json.dumps(line))
    if failed or wrong or slope > MAX_GROWTH * sums[0]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
