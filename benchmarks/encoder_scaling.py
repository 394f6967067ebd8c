"""One, two and four training workers beside each other, and what a sparse item table is worth: one JSON line.

    make bench-encoder-scaling
    python -m benchmarks.encoder_scaling --users 5000 --seeds 7 8 9 --parts workers sparse tables shares merges

workers   `train_encoder` on Ray Train for a fixed number of epochs with 1, 2 and 4 workers of one thread each, every
          number with every seed: the seeds say how far two runs lie apart that differ in nothing but chance
sparse    the same with two workers and a sparse item table, first seed: the threshold is set to 0 in each worker
tables    seconds a step in one process with one thread, item tables of 2^14 to 2^20 rows, dense beside sparse
shares    the same for the share of a batch of 8,192 positions that 1, 2, 4, 8, 16 and 32 workers would get each:
          what the work of a step shrinks to when nothing is exchanged
merges    adding up the lists of rows that so many workers would gather from each other, as gloo's all-reduce does
Log: the synthetic world, temporal protocol, all dials derived, prepared once below --out.
Times: wall clock and CPU time of the process side by side; on a shared machine the second says more. The alternatives
of `tables` and `shares` take turns, so that a machine that grows slower slows all of them; medians over the turns.
Limits: no network is between the workers. One file past the usual length, as its parts make one table.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sonder.core.config import SonderConfig, load
from sonder.core.loopback import LOOPBACK_ENVIRONMENT
from sonder.core.storage import Folder, read_manifest
from sonder.encoder.holdout import Holdout
from sonder.encoder.specification import EncoderSpec
from sonder.encoder.training import TrainingRun
from sonder.events.synthetic import WorldConfig, write_world
from sonder.history.cutoffs import Split
from sonder.history.timelines import Timelines

PARTS = ("workers", "sparse", "tables", "shares", "merges")
NUM_WORKERS = (1, 2, 4)
NUM_DAYS, WORLD_SEED, NUM_BUCKETS = 90, 7, 16
LOGICAL_CPUS = 6  # four workers and room for the tasks of `prepare`
TABLE_ROWS, TABLE_BATCHES = tuple(1 << power for power in (14, 16, 17, 18, 19, 20)), (2048, 8192)
SHARES, LARGEST_BATCH, NUM_NEGATIVES = (1, 2, 4, 8, 16, 32), 8192, 2048
LENGTH, DIM, STEPS_PER_TURN = 64, 64, 8
FLOAT_BYTES, INDEX_BYTES = 4, 8
logger = logging.getLogger("sonder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=12, help="at least 3, for curves to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--turns", type=int, default=5, help="of each alternative of a micro-measurement")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path(".bench/encoder-scaling"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(LOOPBACK_ENVIRONMENT)  # Ray looks when it is imported
    torch.set_num_threads(1)

    result: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if {"workers", "sparse"} & set(arguments.parts):
        result["training"] = measure_trainings(arguments)
    if "tables" in arguments.parts:
        result["tables"] = [measure_table(rows, arguments.turns) for rows in TABLE_ROWS]
    if "shares" in arguments.parts:
        result["shares"] = measure_shares(arguments.turns)
    if "merges" in arguments.parts:
        result["merges"] = measure_merges(arguments.turns)
    print(json.dumps(result))


# -- whole trainings on Ray ----------------------------------------------------------------------------------------


def measure_trainings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every number of workers with every seed, then the sparse table."""
    import pipelines.ray_runtime
    from pipelines.build import open_build

    pipelines.ray_runtime.MIN_LOGICAL_CPUS = LOGICAL_CPUS
    pipelines.ray_runtime.ensure_ray()
    out: Path = arguments.out.resolve() / f"{arguments.users}-users"
    config_file = make_world(arguments.users, out / "world")
    first, *others = arguments.seeds
    plans = [(first, 2, False)]
    if "workers" in arguments.parts:
        plans = [(first, workers, False) for workers in NUM_WORKERS]
        plans += [(seed, workers, False) for workers in NUM_WORKERS for seed in others]
    if "sparse" in arguments.parts:
        plans.insert(len(NUM_WORKERS), (first, 2, True))
    runs = []
    for seed, workers, is_sparse in plans:
        overrides = [f"workspace={out / 'workspace'}", f"prepare.num_buckets={NUM_BUCKETS}", f"seed={seed}"]
        limits = [f"encoder.max_epochs={arguments.epochs}", f"encoder.patience={arguments.epochs}"]
        config = load(config_file, [*overrides, *limits])
        build = open_build(config)
        users = int(read_manifest(build.workspace.history(build.snapshot))["counts"]["users"])
        runs.append(train(config, build.snapshot, build.cutoff_us, workers, users, out, is_sparse=is_sparse))
    return {"users": users, "runs": runs, "differences": compare(runs)}


def make_world(num_users: int, folder: Path) -> Path:
    """Write the synthetic log, unless it is there -> its configuration."""
    if not (folder / "sonder.yaml").exists():
        write_world(WorldConfig(num_users=num_users, num_days=NUM_DAYS, seed=WORLD_SEED), Folder.at(str(folder)))
    return folder / "sonder.yaml"


def train(
    config: SonderConfig, snapshot: str, cutoff_us: int | None, workers: int, users: int, out: Path, *, is_sparse: bool
) -> dict[str, Any]:
    """One training -> its curves, its times and what its workers exchanged in a step."""
    from pipelines.train import train_encoder

    shutil.rmtree(Path(config.workspace) / "staging", ignore_errors=True)  # an interrupted run would be gone on with
    facts_folder = out / "facts"
    shutil.rmtree(facts_folder, ignore_errors=True)
    facts_folder.mkdir(parents=True)
    with _measured_workers(facts_folder, is_sparse=is_sparse):
        target = Folder.at(str(out / "encoder"))
        metrics = train_encoder(config, snapshot, target, cutoff_us=cutoff_us, num_workers=workers)
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(facts_folder.iterdir())]
    assert [one["is_sparse"] for one in facts] == [is_sparse] * workers
    history = metrics["history"]
    seconds = statistics.median(epoch["seconds"] for epoch in history)
    cpu_seconds = [statistics.median(epoch["cpu_seconds"] for epoch in one["epochs"]) for one in facts]
    steps = facts[0]["epochs"][0]["steps"]
    run = {
        "seed": config.seed,
        "workers": workers,
        "is_sparse": is_sparse,
        "loss": [round(epoch["loss"], 5) for epoch in history],
        "ndcg_at_10": [round(epoch["ndcg_at_10"], 5) for epoch in history],
        "hr_at_10": [round(epoch["hr_at_10"], 5) for epoch in history],
        "best_epoch": metrics["best_epoch"],
        "epoch_seconds": seconds,
        "users_per_second": round(users / seconds),
        "steps_per_epoch": [one["epochs"][0]["steps"] for one in facts],
        "cpu_ms_per_step": [round(1e3 * cpu / steps, 2) for cpu in cpu_seconds],  # of each worker
        **{name: facts[0][name] for name in ("parameters", "table_rows", "dim", "batch_tokens", "num_negatives")},
        "rows_touched_by_worker": facts[0]["rows_touched"],
        "exchanged_bytes_per_step": exchanged_bytes(facts[0], workers),
    }
    logger.info("%s", json.dumps(run))
    return run


def exchanged_bytes(facts: Mapping[str, Any], workers: int) -> int:
    """Payload of one step: all weights, or the other weights and the rows that each worker touched with their index."""
    if workers == 1:
        return 0
    if not facts["is_sparse"]:
        return FLOAT_BYTES * int(facts["parameters"])
    others = int(facts["parameters"]) - int(facts["table_rows"]) * int(facts["dim"])
    row_bytes = FLOAT_BYTES * int(facts["dim"]) + INDEX_BYTES
    return FLOAT_BYTES * others + workers * int(facts["rows_touched"]) * row_bytes


@contextmanager
def _measured_workers(facts_folder: Path, *, is_sparse: bool) -> Iterator[None]:
    """In the block each worker has one thread, the item table asked for, and leaves a file with what it measured."""
    import pipelines.train

    original = pipelines.train.train_loop_per_worker

    def measured_loop(arguments: Mapping[str, Any]) -> None:
        import pipelines.train as job
        import sonder.encoder.specification as specification

        specification.SPARSE_PAST = 0 if is_sparse else 1 << 40
        epochs: list[dict[str, float]] = []
        touched: list[int] = []
        runs: list[TrainingRun] = []
        _watch(epochs, touched, runs)
        job.train_loop_per_worker({**arguments, "cores_per_worker": 1})
        facts = {
            "epochs": epochs,
            "rows_touched": round(statistics.median(touched)),
            "parameters": sum(parameter.numel() for parameter in runs[0].model.parameters()),
            "table_rows": runs[0].model.items.num_embeddings,
            "dim": runs[0].spec.dim,
            "is_sparse": runs[0].spec.is_sparse,
            "batch_tokens": runs[0].spec.batch_tokens,
            "num_negatives": runs[0].spec.num_negatives,
        }
        (facts_folder / f"worker-{runs[0].peers.rank}.json").write_text(json.dumps(facts), encoding="utf-8")

    pipelines.train.train_loop_per_worker = measured_loop
    try:
        yield
    finally:
        pipelines.train.train_loop_per_worker = original


def _watch(epochs: list[dict[str, float]], touched: list[int], runs: list[TrainingRun]) -> None:
    """Time every epoch's training, validation left out, and count the rows of the first epoch's steps."""
    from sonder.encoder.model import UserEncoder

    train_epoch, item_rows = TrainingRun.train_epoch, UserEncoder.item_rows

    def timed(run: TrainingRun, on_pause: Any = None) -> float:
        first_step, started, cpu_started = run.progress.step, time.perf_counter(), time.process_time()
        loss = train_epoch(run, on_pause)
        epochs.append(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu_started,
                "steps": run.progress.step - first_step,
            }
        )
        runs[:] = [run]
        return loss

    def counted(model: UserEncoder, items: torch.Tensor, *, forgets: bool = False) -> torch.Tensor:
        if forgets and not epochs:
            touched.append(np.unique(items.numpy()).size)
        return item_rows(model, items, forgets=forgets)

    TrainingRun.train_epoch = timed  # type: ignore[assignment, method-assign]
    UserEncoder.item_rows = counted  # type: ignore[assignment, method-assign]


def compare(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Relative differences of the curves: between seeds, between numbers of workers and between kinds of table."""
    dense, sparse = [run for run in runs if not run["is_sparse"]], [run for run in runs if run["is_sparse"]]
    alone = [run for run in dense if run["workers"] == 1]
    pairs = {
        "seeds": list(combinations(alone, 2)),
        "sparse": [(one, two) for one in dense for two in sparse if _key(one) == _key(two)],
    }
    for workers in NUM_WORKERS[1:]:
        many = {run["seed"]: run for run in dense if run["workers"] == workers}
        pairs[f"{workers}_workers"] = [(one, many[one["seed"]]) for one in alone if one["seed"] in many]
    return {
        name: {
            "loss": [apart(left["loss"], right["loss"]) for left, right in found],
            "loss_at_equal_steps": [apart(*_at_equal_steps(left, right)) for left, right in found],
            "ndcg_at_10": [apart(left["ndcg_at_10"], right["ndcg_at_10"]) for left, right in found],
            "hr_at_10": [apart(left["hr_at_10"], right["hr_at_10"]) for left, right in found],
        }
        for name, found in pairs.items()
    }


def apart(left: Sequence[float], right: Sequence[float]) -> dict[str, float]:
    """Largest and mean size of the relative difference over the points, and the last one with its sign."""
    differences = np.asarray(right) / np.asarray(left) - 1
    sizes = np.abs(differences)
    return {
        "largest": round(float(sizes.max()), 4),
        "mean": round(float(sizes.mean()), 4),
        "last": round(float(differences[-1]), 4),
    }


def _key(run: Mapping[str, Any]) -> tuple[int, int]:
    return run["seed"], run["workers"]


def _at_equal_steps(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Both losses in the middle of the right run's epochs, the left one interpolated over the logarithm of the step.

    More workers fill their smaller batches less well and wait for the busiest: they make more steps an epoch.
    """
    left_steps, right_steps = ((np.arange(len(run["loss"])) + 0.5) * run["steps_per_epoch"][0] for run in (left, right))
    is_inside = (right_steps >= left_steps[0]) & (right_steps <= left_steps[-1])
    there = np.interp(np.log(right_steps[is_inside]), np.log(left_steps), left["loss"])
    return there.tolist(), np.asarray(right["loss"])[is_inside].tolist()


# -- single steps in this process ----------------------------------------------------------------------------------


def measure_table(num_rows: int, turns: int) -> dict[str, Any]:
    """Dense beside sparse for one size of the item table and each size of the batch."""
    found: dict[str, Any] = {"rows": num_rows}
    for batch_tokens in TABLE_BATCHES:
        runs = {
            "dense": make_run(num_rows, batch_tokens, is_sparse=False),
            "sparse": make_run(num_rows, batch_tokens, is_sparse=True),
        }
        times = take_turns(runs, turns)
        may_touch = 2 * batch_tokens + NUM_NEGATIVES
        gradient = runs["sparse"].model.items.weight.grad
        assert gradient is not None
        found[str(batch_tokens)] = {
            "ratio": round(num_rows / may_touch, 2),
            "touched": gradient.coalesce().indices().shape[1],
            **times,
            "cpu_dense_over_sparse": round(times["dense"]["cpu_ms"] / times["sparse"]["cpu_ms"], 2),
            "wall_dense_over_sparse": round(times["dense"]["wall_ms"] / times["sparse"]["wall_ms"], 2),
        }
        logger.info("table of %d rows, batches of %d: %s", num_rows, batch_tokens, json.dumps(found[str(batch_tokens)]))
    return found


def measure_shares(turns: int) -> dict[str, dict[str, float]]:
    """A step of a worker's share of the largest batch, by number of workers."""
    runs = {str(workers): make_run(1 << 14, LARGEST_BATCH // workers, is_sparse=False) for workers in SHARES}
    times = take_turns(runs, turns)
    logger.info("shares of a batch: %s", json.dumps(times))
    return times


def measure_merges(turns: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds to add up the rows of all workers, each as many as its share of a batch can touch at most."""
    random = np.random.default_rng(WORLD_SEED)
    found = {}
    for workers in SHARES[1:]:
        num_rows = 2 * LARGEST_BATCH // workers + NUM_NEGATIVES
        lists = []
        for _ in range(workers):
            rows = torch.from_numpy(np.sort(random.choice(1 << 20, num_rows, replace=False)))
            lists.append(torch.sparse_coo_tensor(rows[None], torch.ones(num_rows, DIM), (1 << 20, DIM)).coalesce())
        taken = []
        for _ in range(turns + 1):
            started = time.process_time()
            total = lists[0]
            for rows in lists[1:]:
                total = total + rows
            total.coalesce()
            taken.append(1e3 * (time.process_time() - started))
        found[str(workers)] = {"rows": workers * num_rows, "cpu_ms": round(statistics.median(taken[1:]), 2)}
    logger.info("merges: %s", json.dumps(found))
    return found


def make_run(num_items: int, batch_tokens: int, *, is_sparse: bool) -> TrainingRun:
    """Users of LENGTH events each, enough for STEPS_PER_TURN steps; items by Zipf's law, every item wanted once."""
    random = np.random.default_rng(WORLD_SEED)
    num_users = STEPS_PER_TURN * batch_tokens // LENGTH
    num_events = num_users * LENGTH
    shares = np.cumsum(1 / np.arange(1, num_items + 1))
    items = np.searchsorted(shares, random.random(num_events) * shares[-1]).astype(np.int32)
    timelines = Timelines(
        user_ids=pa.array([f"user-{user}" for user in range(num_users)]),
        offsets=np.arange(num_users + 1, dtype=np.int64) * LENGTH,
        items=items,
        actions=np.zeros(num_events, dtype=np.int16),
        surfaces=np.zeros(num_events, dtype=np.int16),
        times_us=np.tile(np.arange(LENGTH, dtype=np.int64) * 3_600_000_000, num_users),
        values=np.full(num_events, np.nan),
    )
    nobody = timelines.take(np.arange(1))
    spec = EncoderSpec(
        num_items=num_items,
        num_actions=1,
        num_surfaces=1,
        action_weights=(1.0,),
        reads_time=True,
        dim=DIM,
        num_blocks=2,
        num_heads=2,
        max_length=LENGTH,
        dropout=0.2,
        objective="next_action",
        window_us=0,
        num_negatives=NUM_NEGATIVES,
        batch_tokens=batch_tokens,
        learning_rate=2e-3,
        weight_decay=0.01,
        average_decay=0.99,
        excludes_seen=False,
        recalls=True,
        seed=WORLD_SEED,
        is_sparse=is_sparse,
    )
    counts = np.bincount(items, minlength=num_items).astype(np.int64) + 1
    return TrainingRun(spec, [Holdout(timelines, Split(nobody, nobody))], counts)


def take_turns(runs: Mapping[str, TrainingRun], turns: int) -> dict[str, dict[str, float]]:
    """Median and fastest milliseconds a step; the first turn, which fills the memory, does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            first_step, started, cpu_started = run.progress.step, time.perf_counter(), time.process_time()
            run.train_epoch()
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            if turn:
                steps = run.progress.step - first_step
                times[name].append((1e3 * wall / steps, 1e3 * cpu / steps))
    return {
        name: {
            "wall_ms": round(statistics.median(wall for wall, _ in taken), 2),
            "cpu_ms": round(statistics.median(cpu for _, cpu in taken), 2),
            "fastest_cpu_ms": round(min(cpu for _, cpu in taken), 2),
        }
        for name, taken in times.items()
    }


if __name__ == "__main__":
    main()
