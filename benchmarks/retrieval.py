"""Nearest items by index against exact: recall@100 and time of a query, with and without filters, by catalogue size.

    make bench-retrieval
    python -m benchmarks.retrieval [--sizes 10000 100000 1000000] [--dim 64]

Items are unit vectors around cluster centres with a popularity as one more coordinate, queries come from the same
centres and none of them is in the sample that the index was tuned on. One query at a time, as a lone request asks;
times are medians of 100 queries. Filters: a random tenth, a random thousandth, and a cluster (a category's shape).
Prints a Markdown table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.retrieval.approximate import VectorIndex, recall
from sonder.retrieval.exact import Found, top_items

NUM_QUERIES, K = 100, 100


def world(num: int, dim: int, draw: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64], Any]:
    """Items [num, dim + 1], the cluster of each, and a function that draws queries."""
    centres = draw.standard_normal((max(20, num // 500), dim)).astype(np.float32)

    def near(cluster: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = centres[cluster] + 0.7 * draw.standard_normal((len(cluster), dim)).astype(np.float32)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    cluster = draw.integers(len(centres), size=num)
    popularity = 0.1 * draw.random(num).astype(np.float32)

    def queries(number: int) -> NDArray[np.float32]:
        return np.column_stack([near(draw.integers(len(centres), size=number)), np.ones(number, np.float32)])

    return np.column_stack([near(cluster), popularity]), cluster, queries


def timed(search: Callable[[NDArray[np.float32]], Found], queries: NDArray[np.float32]) -> tuple[Any, float]:
    """Answers of every query, and the median milliseconds of one."""
    rows, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        found, _ = search(query[None])
        seconds.append(time.perf_counter() - started)
        rows.append(found[0])
    return np.array(rows), 1e3 * float(np.median(seconds))


def measure(num: int, dim: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(num)
    items, cluster, queries = world(num, dim, draw)
    sample, asked = queries(1_000), queries(NUM_QUERIES)
    started = time.perf_counter()
    index = VectorIndex(items, sample)
    build_s = time.perf_counter() - started
    filters = {
        "none": None,
        "a random tenth": draw.random(num) < 0.1,
        "a random thousandth": draw.random(num) < 0.001,
        "ten clusters": cluster < 10,
    }
    told = []
    for name, allowed in filters.items():
        wanted, exact_ms = timed(lambda q, a=allowed: top_items(q, items, K, allowed_I=a), asked)  # type: ignore[misc]
        found, index_ms = timed(lambda q, a=allowed: index.search(q, K, allowed_N=a), asked)  # type: ignore[misc]
        told.append(
            {
                "items": num,
                "filter": name,
                "build_s": round(build_s, 1),
                "is_exact": index.is_exact,
                "nprobe": index.nprobe,
                "recall_at_100": round(recall(found, wanted), 4),
                "exact_ms": round(exact_ms, 2),
                "index_ms": round(index_ms, 2),
            }
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    told = [row for num in options.sizes for row in measure(num, options.dim)]
    names = ("items", "filter", "build s", "cells looked at", "recall@100", "exact ms", "index ms")
    print(f"| {' | '.join(names)} |")
    print("|---" * len(names) + "|")
    for row in told:
        cells = "exact" if row["is_exact"] else row["nprobe"]
        times = f"{row['exact_ms']} | {row['index_ms']}"
        print(f"| {row['items']:,} | {row['filter']} | {row['build_s']} | {cells} | {row['recall_at_100']} | {times} |")
    print(f"\nMost memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB.")
    print(json.dumps({"least_recall_at_100": min(row["recall_at_100"] for row in told), "k": K, "rows": told}))


if __name__ == "__main__":
    main()
