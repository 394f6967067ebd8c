"""Memory and speed of `sonder prepare` on a synthetic log: the limit is 8 GiB for 20 million events.

    python -m benchmarks.prepare --out /tmp/prepare [--events 20000000] [--limit-gib 8]

Writes a log of exactly that many events (people of the synthetic world over 90 days), runs the command as a user would,
and samples all its processes, Ray's own included, until it ends. Memory is the sum of their proportional set sizes
(/proc/*/smaps_rollup: a shared page counts once) with the object store at the size that it takes on /dev/shm, mapped or
not. Prints a Markdown table; ends with status 1 past the limit. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import with_descendants
from sonder.core.storage import Folder, read_manifest
from sonder.events.synthetic import WorldConfig, simulate
from sonder.events.synthetic.catalogue import build_catalogue
from sonder.events.synthetic.world import configuration, write_events

GIB = 1 << 30
NUM_DAYS, SEED = 90, 7
FEWEST_EVENTS_PER_USER = 50  # so that enough people are asked for; those who are not needed are never simulated
SECONDS_BETWEEN_SAMPLES = 0.25


@dataclass
class Sample:
    """Bytes held at one moment."""

    private: int = 0  # heaps and files; pages shared by k processes count 1/k in each
    object_store: int = 0
    largest_process: int = 0  # without the object store
    num_processes: int = 0

    @property
    def total(self) -> int:
        return self.private + self.object_store


@dataclass
class Sampler:
    """A process and everything it starts, also what outlives its own parent."""

    root: int
    known: set[int] = field(default_factory=set)

    def sample(self) -> Sample:
        self._find_processes()
        now, mapped, stores = Sample(), 0, {}
        for pid in self.known:
            try:
                sizes = _smaps(pid)
                stores.update(_shared_files(pid))
            except OSError:  # it has ended
                continue
            own = sizes["Pss_Anon"] + sizes["Pss_File"]
            now.private += own
            now.largest_process = max(now.largest_process, own)
            now.num_processes += 1
            mapped += sizes["Pss_Shmem"]
        now.object_store = max(mapped, sum(stores.values()))
        return now

    def _find_processes(self) -> None:
        self.known = with_descendants(self.known | {self.root})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the log and the workspace")
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--limit-gib", type=float, default=8.0)
    arguments = parser.parse_args()
    folder = Folder.at(str(arguments.out.resolve() / f"events-{arguments.events}"))
    write_log(folder, arguments.events)
    (folder / "workspace").remove()
    seconds, peak, largest = run_prepare(folder)
    counts = read_manifest((folder / "workspace" / "history").children()[0])["counts"]
    rows = [
        ("events", f"{counts['events']:,} of {counts['users']:,} users"),
        ("seconds, Ray's start included", f"{seconds:.0f}"),
        ("events a second", f"{counts['events'] / seconds:,.0f}"),
        ("peak memory", f"{peak.total / GIB:.2f} GiB in {peak.num_processes} processes"),
        ("of it the object store", f"{peak.object_store / GIB:.2f} GiB"),
        ("largest object store", f"{largest.object_store / GIB:.2f} GiB"),
        ("largest process", f"{largest.largest_process / GIB:.2f} GiB"),
        ("cores, memory of the machine", f"{os.cpu_count()}, {_machine_bytes() / GIB:.0f} GiB"),
    ]
    print("| measured | value |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))
    if peak.total > arguments.limit_gib * GIB:
        raise SystemExit(1)


def write_log(folder: Folder, num_events: int) -> None:
    """As `sonder synth` does, part by part, until there are enough events; kept if it is there."""
    config = WorldConfig(min(num_events // FEWEST_EVENTS_PER_USER + 1_000, 9_999_999), NUM_DAYS, SEED)
    if (folder / "sonder.yaml").exists():
        return
    left = num_events
    for index, part in enumerate(simulate(config)):
        events = part.events.slice(0, left)
        write_events(events, folder / "events" / f"part-{index:05d}.parquet")
        left -= events.num_rows
        if left == 0:
            break
    assert left == 0, f"{config.num_users:,} users made {num_events - left:,} events"
    (folder / "items.parquet").write_table(build_catalogue(config).table())
    (folder / "sonder.yaml").write_bytes(configuration(config, folder).encode())


def run_prepare(folder: Folder) -> tuple[float, Sample, Sample]:
    """Seconds, the sample with most memory, and the largest of each figure over the run."""
    command = [sys.executable, "-m", "pipelines.cli", "prepare", "--config", (folder / "sonder.yaml").path]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started, peak, largest = time.perf_counter(), Sample(), Sample()
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as process:
        sampler = Sampler(process.pid)
        while process.poll() is None:
            now = sampler.sample()
            peak = max(peak, now, key=lambda sample: sample.total)
            largest.object_store = max(largest.object_store, now.object_store)
            largest.largest_process = max(largest.largest_process, now.largest_process)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, peak, largest


def _smaps(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size.split()[0]) << 10 for name, _, size in (line.partition(":") for line in lines)}


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Bytes that each file on /dev/shm takes, by its identity: Ray's object store is one, removed but open."""
    sizes = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith("/dev/shm/"):
                status = descriptor.stat()
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
        except OSError:  # closed since
            continue
    return sizes


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    main()
