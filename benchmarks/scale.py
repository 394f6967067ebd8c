"""How a build grows with the log: time, CPU, memory and bytes written of each step, and the exponent of its growth.

    make bench-scale
    python -m benchmarks.scale [--out .bench/scale] [--events 1000000 10000000] [--per-user 20] [--until report]
                               [--resume]

Each size is a log of its own (benchmarks.scale_log) with `per-user` events a user, built by `sonder build` with one
epoch of the encoder and one trial of the scores, on the cores of this machine. All processes of the build, Ray's own
included, are looked at twice a second; what is seen counts for the step whose marker is not there yet. CPU seconds do
not depend much on what else the machine does, wall seconds do. Bytes are those that the processes wrote to the disk,
spilled objects included, and the size of the release.

exponent   slope of log(CPU seconds) over log(events) between the two largest sizes, and over all of them; CPU of an
           empty step of Ray (its start) is in all sizes, so small logs look better than linear

resume     go on with builds that were stopped; what is told then is of the steps that were still open

Prints a Markdown table a size and one of exponents, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.prepare import GIB, Sampler
from benchmarks.scale_log import write_log
from sonder.core.storage import Folder

STEPS = ("prepare", "train", "segment", "cluster", "growth", "score", "profiles", "evaluate", "report")
EPOCHS = 1
TICKS = os.sysconf("SC_CLK_TCK")
SECONDS_BETWEEN_SAMPLES = 0.5


@dataclass
class Step:
    """What one step took."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0


@dataclass
class Used:
    """CPU and disk of processes, also of those that have ended."""

    cpu: dict[int, float] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)

    def look(self, pids: set[int]) -> tuple[float, int]:
        """All CPU seconds and bytes written so far."""
        for pid in pids:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
            except OSError:  # it has ended
                continue
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
            self.written[pid] = int(lines["write_bytes"])
        return sum(self.cpu.values()), sum(self.written.values())


def current_step(workspace: Path) -> str:
    """The first step without a marker."""
    if not any(workspace.glob("history/*/manifest.json")):
        return STEPS[0]
    if any(workspace.glob("releases/*/manifest.json")):
        return STEPS[-1]
    done = {marker.stem for marker in workspace.glob(".staging/build-*/steps/*.json")}
    return next((step for step in STEPS[1:] if step not in done), STEPS[-1])


def run(folder: Folder, until: str) -> dict[str, Step]:
    """Build, and what each step took."""
    workspace = Path(folder.path) / "workspace"
    command = [sys.executable, "-m", "pipelines.cli", "build" if until == STEPS[-1] else until]
    command += ["--config", (folder / "sonder.yaml").path, "--set", f"encoder.max_epochs={EPOCHS}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    steps = {step: Step() for step in STEPS[: STEPS.index(until) + 1]}
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as process:
        sampler, used, last = Sampler(process.pid), Used(), (time.perf_counter(), 0.0, 0)
        under_way = STEPS[0]
        while process.poll() is None:
            if (name := current_step(workspace)) != under_way:
                _tell(under_way, steps.get(under_way, Step()))
                under_way = name
            step = steps.get(name, Step())
            step.peak_bytes = max(step.peak_bytes, sampler.sample().total)
            now = (time.perf_counter(), *used.look(sampler.known))
            step.seconds += now[0] - last[0]
            step.cpu_s += now[1] - last[1]
            step.written_bytes += now[2] - last[2]
            last = now
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise SystemExit(process.returncode)
    return steps


def _tell(name: str, step: Step) -> None:
    """A step that ended, so that a build which is stopped later has not been for nothing."""
    print(f"| {_row(name, step)} |", file=sys.stderr)


def _row(name: str, step: Step) -> str:
    sizes = f"{step.peak_bytes / GIB:.2f} | {step.written_bytes / GIB:.2f}"
    return f"{name} | {step.seconds:.0f} | {step.cpu_s:.0f} | {sizes}"


def exponent(events: list[int], costs: list[float]) -> float | None:
    """Least-squares slope of log cost over log events; None for a step that took nothing."""
    if min(costs) <= 0:
        return None
    return float(np.polyfit(np.log(events), np.log(costs), 1)[0])


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".bench/scale"))
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--per-user", type=int, default=20)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1])
    asked = parser.parse_args()
    measured: dict[int, dict[str, Step]] = {}
    for events in sorted(asked.events):
        folder = Folder.at(str(asked.out.resolve() / f"events-{events}"))
        write_log(folder, events, events // asked.per_user)
        if not asked.resume:
            (folder / "workspace").remove()
        measured[events] = run(folder, asked.until)
        show(events, events // asked.per_user, measured[events], Path(folder.path) / "workspace")
    exponents = {}
    sizes = list(measured)
    if len(sizes) > 1:
        print("| step | exponent of CPU, two largest sizes | all sizes |\n|---|---|---|")
        for step in measured[sizes[0]]:
            costs = [measured[size][step].cpu_s for size in sizes]
            newest, every = exponent(sizes[-2:], costs[-2:]), exponent(sizes, costs)
            exponents[step] = None if newest is None else round(newest, 2)
            print(f"| {step} | {_told(newest)} | {_told(every)} |")
    seconds = {str(size): round(sum(step.seconds for step in steps.values())) for size, steps in measured.items()}
    print(json.dumps({"seconds": seconds, "exponents": exponents}))


def show(events: int, users: int, steps: dict[str, Step], workspace: Path) -> None:
    print(f"\n{events:,} events, {users:,} users:\n")
    print("| step | seconds | CPU s | peak GiB | written GiB |\n|---|---|---|---|---|")
    for name, step in steps.items():
        print(f"| {_row(name, step)} |")
    for part in ("history", "releases"):
        print(f"\n{part}: {size_of(workspace / part) / GIB:.2f} GiB on disk", flush=True)


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
