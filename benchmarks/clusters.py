"""Clustering vectors through Ray Data beside scikit-learn's MiniBatchKMeans on the collected array: one JSON line.

    python -m benchmarks.clusters --users 1000000

Vectors: `--users` unit vectors of width 64 around 12 random directions of unequal size, with noise that makes the
groups touch; in bucket files of 10,000, as `sonder build` would lay them out, once, below .bench.
Ours: read the sample, choose the number of clusters, fit the sample, passes over everybody, assignment with its files;
each timed. `ray.init` is not in it, starting the workers is. Peer: read all files into one array and fit
MiniBatchKMeans (batches of 65,536, three starts) with the same number of clusters; its assignment is not timed.
Inertia: sum of 1 - cosine over the users of the first ten buckets, with the centroids of each.
Memory: the high-water mark of the resident set of this process before the peer runs, and of each worker. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.processes import with_descendants
from pipelines.bucket_tasks import over_buckets, part_file
from pipelines.cluster import AssignBucket, lloyd_passes
from pipelines.cluster_reading import read_sample_vectors, vector_blocks
from pipelines.embed import vector_table
from pipelines.ray_runtime import ensure_ray
from sonder.core.storage import MANIFEST, Folder
from sonder.segments.cluster_start import fresh_centroids
from sonder.segments.clusters import Clusters, assign, unit_rows
from sonder.segments.stability import choose_num_clusters

WIDTH, GROUPS, BUCKET_USERS, SPREAD, SEED = 64, 12, 10_000, 0.16, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(".bench/clusters"))
    parser.add_argument("--no-peer", action="store_true", help="the peer needs several times the array's memory")
    given = parser.parse_args()
    num_buckets = given.users // BUCKET_USERS
    target = Folder.at(str((given.folder / str(given.users)).resolve()))
    write_world(target, num_buckets)
    (target / "clusters").remove()
    ensure_ray()
    watch = Watch()
    found, centroids_KD = cluster(target, list(range(num_buckets)))
    memory = watch.stop()
    result = {"users": given.users, "ours": found, "memory_mib": memory, "inertia": inertia_of(target, centroids_KD)}
    if not given.no_peer:
        peer, peer_KD = fit_peer(target, num_buckets, len(centroids_KD))
        result |= {"peer": peer, "inertia_peer": inertia_of(target, peer_KD)}
    print(json.dumps(result))


def write_world(target: Folder, num_buckets: int) -> None:
    """Vectors and a lifecycle for each user, and the manifest that lists the buckets; nothing if they are there."""
    if (target / MANIFEST).exists():
        return
    centres_GD = unit_rows(np.random.default_rng(SEED).standard_normal((GROUPS, WIDTH)).astype(np.float32))
    shares_G = np.arange(1, GROUPS + 1) / (GROUPS * (GROUPS + 1) / 2)
    for bucket in range(num_buckets):
        draw = np.random.default_rng([SEED, bucket])
        groups = draw.choice(GROUPS, BUCKET_USERS, p=shares_G)
        noise_UD = SPREAD * draw.standard_normal((BUCKET_USERS, WIDTH), np.float32)
        vectors_UD = unit_rows((centres_GD[groups] + noise_UD).astype(np.float32)).astype(np.float32)
        user_ids = pa.array([f"u{bucket:04d}-{user}" for user in range(BUCKET_USERS)])
        part_file(target / "vectors", bucket).write_table(vector_table(user_ids, vectors_UD))
        states = pa.table({"user_id": user_ids, "lifecycle": pa.array(["core"] * BUCKET_USERS)})
        part_file(target / "segments", bucket).write_table(states)
    entries = [{"bucket": bucket, "users": BUCKET_USERS, "events": 0} for bucket in range(num_buckets)]
    (target / MANIFEST).write_json({"buckets": entries})


def cluster(target: Folder, buckets: list[int]) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Every stage of the job with its seconds."""
    clock = [time.perf_counter()]
    sample_SD, _ = read_sample_vectors(target / "vectors", target)
    clock.append(time.perf_counter())
    choice = choose_num_clusters(sample_SD, seed=SEED)
    clock.append(time.perf_counter())
    centroids_KD = fresh_centroids(sample_SD, choice.num_clusters, seed=SEED)
    clock.append(time.perf_counter())
    centroids_KD, inertias = lloyd_passes(target, centroids_KD, buckets, None)
    clock.append(time.perf_counter())
    clusters = Clusters(centroids_KD, tuple(range(1, len(centroids_KD) + 1)), ("",) * len(centroids_KD))
    over_buckets(AssignBucket, {"target": target.uri, "clusters": clusters}, buckets)
    clock.append(time.perf_counter())
    names = ("read_sample_s", "choose_s", "fit_sample_s", "passes_s", "assign_s")
    seconds = {name: round(value, 1) for name, value in zip(names, np.diff(clock), strict=True)}
    total = {"total_s": round(clock[-1] - clock[0], 1), "clusters": len(centroids_KD), "passes": len(inertias)}
    return seconds | total | {"reason": choice.reason, "inertias": inertias}, centroids_KD


def fit_peer(target: Folder, num_buckets: int, num_clusters: int) -> tuple[dict[str, float], NDArray[np.float32]]:
    """scikit-learn on everything in memory."""
    from sklearn.cluster import MiniBatchKMeans

    started = time.perf_counter()
    files = (part_file(target / "vectors", bucket) for bucket in range(num_buckets))
    everything_UD = np.concatenate([block for file in files for block in vector_blocks(file)])
    read = time.perf_counter()
    model = MiniBatchKMeans(num_clusters, batch_size=1 << 16, n_init=3, random_state=SEED).fit(everything_UD)
    fitted = time.perf_counter()
    centroids_KD = unit_rows(model.cluster_centers_.astype(np.float32)).astype(np.float32)
    seconds = {"read_s": round(read - started, 1), "fit_s": round(fitted - read, 1)}
    return seconds | {"array_mib": everything_UD.nbytes >> 20, "peak_mib": high_water_mib(os.getpid())}, centroids_KD


def inertia_of(target: Folder, centroids_KD: NDArray[np.float32]) -> float:
    """Of the users of the first ten buckets."""
    files = (part_file(target / "vectors", bucket) for bucket in range(10))
    blocks = (block for file in files for block in vector_blocks(file))
    return round(sum(float((1 - assign(block, centroids_KD).similarity).sum()) for block in blocks), 2)


class Watch:
    """The high-water marks of this process and of the Ray workers, looked at twice a second."""

    def __init__(self) -> None:
        self._peaks: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        own = os.getpid()
        while not self._done.wait(0.5):
            for pid in with_descendants({own}):
                if pid == own or "ray::" in _command(pid):
                    self._peaks[pid] = max(self._peaks.get(pid, 0), high_water_mib(pid))

    def stop(self) -> dict[str, int]:
        self._done.set()
        self._thread.join()
        workers = [peak for pid, peak in self._peaks.items() if pid != os.getpid()]
        return {"driver": high_water_mib(os.getpid()), "largest_worker": max(workers, default=0)}


def high_water_mib(pid: int) -> int:
    """VmHWM of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
