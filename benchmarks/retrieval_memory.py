"""Memory of one retrieval replica: bytes a user while it loads a release, holds it, and answers.

    make bench-retrieval-memory
    python -m benchmarks.retrieval_memory WORKSPACE [--users 1000000] [--before CHECKOUT] [--turns 1]

The newest release of the workspace, its profiles repeated under other ids and with vectors nearby up to `--users`
(kept beside the release; fewer than it has: as it is). A process of its own loads them as the deployment does, without
Ray. `--before` takes the code of another checkout as well, in turns.

loading, lookalike   most memory during it, bytes a user, less that of a process that has imported the same
held                 after loading, and after the lookalike (200 seeds, 1,000 answers)
similar              recall@100 of the users found beside exact ones, and median ms of one query, 200 users

Prints a Markdown table and ends in one JSON line. Linux only.
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

import numpy as np
import pyarrow as pa

from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.releases.registry import Registry

GIB = 1 << 30
SPREAD = 0.5  # length of what is added to a vector
COLUMNS = ("loading", "held", "lookalike", "held after it")
REPLICA = """
import json, sys, time
import numpy as np
from services.retrieval.nearest import Nearest
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release
from sonder.retrieval.approximate import recall
from sonder.retrieval.exact import similar_users

def status(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) << 10

def peak_of(work):
    open("/proc/self/clear_refs", "w").write("5")
    done = work()
    return done, status("VmHWM")

class Grown(Release):
    profiles = Folder.at(sys.argv[3])

found = {"empty": status("VmRSS")}
opened = Release.open(Workspace.at(sys.argv[1]), sys.argv[2])
started = time.perf_counter()
nearest, found["loading"] = peak_of(lambda: Nearest(Grown(opened.workspace, opened.manifest)))
found["load_s"] = time.perf_counter() - started
found["held"] = status("VmRSS")
found["users"] = len(nearest._user_ids)
draw = np.random.default_rng(3)
rows = np.sort(draw.choice(found["users"], 200, replace=False))
queries = nearest._users_UD[rows]
exact, _ = similar_users(queries, nearest._users_UD, 100)
answers, seconds = [], []
for query in queries:
    started = time.perf_counter()
    answers.append(nearest._users.search(query[None], 100)[0][0])
    seconds.append(time.perf_counter() - started)
found["recall"] = recall(np.array(answers), exact)
found["ms"] = 1e3 * float(np.median(seconds))
seeds = nearest._user_ids.take(rows).to_pylist()
started = time.perf_counter()
audience, found["lookalike"] = peak_of(lambda: nearest.lookalike(seeds, 1_000, []))
found["lookalike_s"] = time.perf_counter() - started
found["held after it"] = status("VmRSS")
found["audience"] = [user for user, _ in audience["audience"]]
print(json.dumps(found))
"""


def grown(opened: Release, target: Folder, users: int) -> Folder:
    """The profiles of a release, repeated; written once."""
    names = [name for name in opened.profiles.files() if name.endswith(".parquet")]
    present = sum((opened.profiles / name).read_table(["user_id"]).num_rows for name in names)
    if present >= users:
        return opened.profiles
    if target.exists():
        return target
    draw = np.random.default_rng(7)
    for copy in range(-(-users // present)):
        for name in names:
            table = (opened.profiles / name).read_table()
            if copy:
                ids = [f"{user}-{copy}" for user in table.column("user_id").to_pylist()]
                table = _replaced(table, "user_id", pa.array(ids, pa.string()))
                table = _replaced(table, "embedding", _near(table.column("embedding"), draw))
            (target / f"copy={copy:04d}" / name).write_table(table)
    return target


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), values.cast(table.schema.field(name).type))


def _near(column: pa.ChunkedArray, draw: np.random.Generator) -> pa.Array:
    """Unit vectors near those of the column, none where it has none."""
    whole = column.combine_chunks()
    known = whole.is_valid().to_numpy(zero_copy_only=False)
    vectors = np.array(whole.drop_null().to_pylist(), dtype=np.float32)
    vectors += SPREAD / np.sqrt(vectors.shape[1]) * draw.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = iter(vectors.tolist())
    return pa.array([next(rows) if is_known else None for is_known in known], whole.type)


def measure(workspace: str, release: str, profiles: Folder, code: Path) -> dict[str, Any]:
    """What one replica took."""
    environment = {**os.environ, "PYTHONPATH": f"{code}/libs:{code}"}
    command = [sys.executable, "-c", REPLICA, workspace, release, profiles.path]
    ended = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--before", type=Path, help="checkout of another state of this code")
    parser.add_argument("--turns", type=int, default=1)
    asked = parser.parse_args()
    workspace = Workspace.at(str(asked.workspace.resolve()))
    opened = Release(workspace, Registry(workspace).newest())
    profiles = grown(opened, workspace.root / f"profiles-{asked.users}", asked.users)
    codes = {"before": asked.before.resolve()} if asked.before else {}
    codes["now"] = Path(__file__).resolve().parents[1]
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in codes}
    for _ in range(asked.turns):
        for name, code in codes.items():
            taken[name].append(measure(workspace.root.path, opened.id, profiles, code))
    audience = next(iter(taken.values()))[0].pop("audience")
    print(f"{next(iter(taken.values()))[0]['users']:,} users with a vector; bytes a user\n")
    head = " | ".join((*COLUMNS, "load s", "recall@100", "similar ms", "lookalike s", "same of the 1,000"))
    print(f"| code | {head} |\n{'|---' * (len(COLUMNS) + 6)}|")
    results = []
    for name, turns in taken.items():
        sizes = {of: statistics.median((one[of] - one["empty"]) / one["users"] for one in turns) for of in COLUMNS}
        of = {key: statistics.median(one[key] for one in turns) for key in ("load_s", "recall", "ms", "lookalike_s")}
        same = len(set(turns[-1].get("audience", audience)) & set(audience))
        shown = f"{of['load_s']:.0f} | {of['recall']:.3f} | {of['ms']:.2f} | {of['lookalike_s']:.1f} | {same:,}"
        print(f"| {name} | {' | '.join(f'{size:,.0f}' for size in sizes.values())} | {shown} |")
        results.append({"code": name, "users": turns[0]["users"], **sizes, **of, "same": same})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
