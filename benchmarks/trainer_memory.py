"""Memory of one trainer of the encoder: while it lays the histories of a snapshot out, and while it takes steps.

    make bench-trainer-memory
    python -m benchmarks.trainer_memory WORKSPACE... [--steps 64] [--before CHECKOUT] [--turns 1]

Each workspace has a snapshot (`sonder prepare`; benchmarks.scale makes large ones). The trainer is that
of `sonder build` for the whole log, in a process of its own without Ray: it lays out, takes some steps of the first
epoch, and ends. `--before` takes the code of another checkout as well, in turns.

peak        the process's high-water mark (VmHWM) at that moment, in bytes an event of the snapshot, less that of a
            process that has imported the same and read nothing but the vocabulary
rows        a digest of the items that the first epoch is to predict: the same before and after

Prints a Markdown table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from sonder.core.storage import Folder, read_manifest

GIB = 1 << 30
TRAINER = """
import json, os, sys, hashlib
import numpy as np
import pipelines.train as train
from sonder.core.config import load
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.content import item_content
from sonder.encoder.training import TrainingRun
from sonder.history.vocabulary import Vocabulary

def status(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) << 10

config_file, steps = sys.argv[1], int(sys.argv[2])
config = load(config_file)
workspace = Workspace.at(config.workspace)
(snapshot,) = (child.name for child in (workspace.root / "history").children())
item_content(Vocabulary.load(workspace.items(snapshot)))
found = {"empty": status("VmHWM")}

class Enough(Exception):
    pass

def fit(run, limits, on_epoch=None, on_pause=None):
    found.update(laid_out=status("VmHWM"), held=status("VmRSS"), tokens=len(run.tokens.items))
    drawn = run.goals.draw(np.random.default_rng(0))
    found["rows"] = hashlib.blake2b(run.goals.items[drawn.places].tobytes(), digest_size=8).hexdigest()
    del drawn
    def enough(run):
        if run.progress.step >= steps:
            raise Enough
    try:
        if steps:
            run.train_epoch(enough)
    except Enough:
        pass
    found.update(steps=status("VmHWM"), held_in_steps=status("VmRSS"))
    print(json.dumps(found), flush=True)
    os._exit(0)

TrainingRun.fit = fit
train.train_encoder(config, snapshot, Folder.at("/nowhere"), cutoff_us=None, num_workers=0)
"""


def measure(workspace: Path, code: Path, steps: int) -> dict[str, Any]:
    """What one trainer took."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = f"{code}/libs:{code}"
    command = [sys.executable, "-c", TRAINER, str(workspace.parent / "sonder.yaml"), str(steps)]
    ended = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspaces", type=Path, nargs="+", metavar="WORKSPACE")
    parser.add_argument("--steps", type=int, default=64, help="0: lay out and draw the goals of an epoch, no more")
    parser.add_argument("--before", type=Path, help="checkout of another state of this code")
    parser.add_argument("--turns", type=int, default=1)
    asked = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    codes = {"before": asked.before.resolve()} if asked.before else {}
    codes["now"] = here
    print("| log | code | laid out, bytes an event | peak in steps | held in steps | peak, GiB | rows |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for workspace in (path.resolve() for path in asked.workspaces):
        (history,) = (Folder.at(str(workspace)) / "history").children()
        counts = read_manifest(history)["counts"]
        events = int(counts["events"])
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in codes}
        for _ in range(asked.turns):
            for name, code in codes.items():
                taken[name].append(measure(workspace, code, asked.steps))
        for name, turns in taken.items():
            per_event = {
                moment: statistics.median((one[moment] - one["empty"]) / events for one in turns)
                for moment in ("laid_out", "steps", "held_in_steps")
            }
            peak = statistics.median(one["steps"] for one in turns) / GIB
            log = f"{events:,} events, {turns[0]['tokens']:,} tokens, {int(counts['users']):,} users"
            sizes = " | ".join(f"{per_event[moment]:.0f}" for moment in per_event)
            print(f"| {log} | {name} | {sizes} | {peak:.2f} | {turns[0]['rows']} |", flush=True)
            results.append({"events": events, "code": name, **{k: round(v, 1) for k, v in per_event.items()}})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
