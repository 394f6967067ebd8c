"""What several interests are worth in retrieval, in PinnerSage's order and beside the long-term vector: JSON lines.

    python -m benchmarks.interest_retrieval path/to/workspace   # its served release: temporal, before the test window

Every representation of a user gives the same number k of candidates in all. recall@k is the share of the distinct
items that the user wants within the test window that are among them, the mean over the users with any such item and
any wanted item before it. `all`: every wanted item, what the user had may be a candidate. `new`: items that the user
had not wanted before, candidates are without its history. Exact search by cosine over the release's items.

last item      of the newest wanted event
decayed mean   of the items of the newest 200 wanted events, with the half-life and the weights of the interests
k-means        of the same items, k = 5 or 10, one start, centroids; weight is the decayed weight of a cluster's items
Ward           interests.ward, medoids, 5 or 10 kept; `centroids`: of the same clusters of the newest 200
long-term      the user's vector by the encoder, by cosine; `as served` adds the item's popularity at the cutoff
Several vectors share k in turns by weight (retrieval.several). `best score`: each item by the best of its cosines, plus
popularity where the long-term vector as served is among them; `mixture`: by log(sum of weight x exp(cosine / .07)).
How interests and the long-term vector are merged is chosen on the window of the same length before the test window.
The encoder has seen that window in training, so the choice leans to the long-term vector; the test window it has not.
Intervals: 95 %, bootstrap over users, 1,000 draws; differences are between lists of the same users.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from sonder.core.config import InterestsConfig
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.encoder.inference import embed_users
from sonder.encoder.trend import decayed_counts
from sonder.history.cutoffs import temporal
from sonder.history.snapshot import buckets_of, read_timelines
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.clusters import ward_clusters
from sonder.interests.derive import derive_config, is_known_vector
from sonder.interests.ward import cluster_interests
from sonder.releases.registry import Registry
from sonder.retrieval.exact import mask_history
from sonder.retrieval.selection import select_top
from sonder.retrieval.several import Queries, several_items

BUDGETS = (20, 100)
CHOSEN_AT = 100
SHARES = (0.25, 0.5, 0.75, 0.9)
TEMPERATURE = 0.07
NUM_DRAWS = 1_000
USERS_AT_ONCE = 256


@dataclass(frozen=True)
class World:
    """U users at a cutoff, what they had, what they want next, and their representations."""

    history: Timelines  # wanted events on items with a vector
    targets: dict[str, NDArray[np.bool_]]  # by task, [U, I]
    items_ID: NDArray[np.float32]
    bias_I: NDArray[np.float32]
    allowed_I: NDArray[np.bool_]
    long_UD: NDArray[np.float32]
    queries: dict[str, Queries]

    @property
    def num_users(self) -> int:
        return self.history.num_users


Method = Callable[[World, int, Timelines | None], NDArray[np.int32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workspace = Workspace.at(str(arguments.workspace))
    current = Registry(workspace).current()
    assert current is not None
    manifest = Registry(workspace).show(current.release)
    release, snapshot = workspace.release(manifest.id), workspace.history(manifest.snapshot)
    vocabulary, encoder = Vocabulary.load(release / "items"), load_encoder(release / "encoder")
    timelines = read_timelines(snapshot, vocabulary, buckets_of(snapshot))
    days = manifest.config["evaluation"]["test_days"]
    cutoff_us = manifest.as_of_us - days * MICROSECONDS_PER_DAY
    before_us = cutoff_us - days * MICROSECONDS_PER_DAY

    validation = world_at(timelines, vocabulary, encoder, cutoff_us=before_us, end_us=cutoff_us)
    merges = merges_of()
    for task in ("all", "new"):
        values = {name: float(recalls(validation, method, task, CHOSEN_AT).mean()) for name, method in merges.items()}
        chosen = max(values, key=lambda name: values[name])
        print(json.dumps({"validation": task, "k": CHOSEN_AT, "chosen": chosen, "recall": rounded(values)}), flush=True)
    test = world_at(timelines, vocabulary, encoder, cutoff_us=cutoff_us, end_us=manifest.as_of_us)
    methods = alone_of() | merges
    for task in ("all", "new"):
        for k in BUDGETS:
            found = {name: recalls(test, method, task, k) for name, method in methods.items()}
            print(json.dumps({"test": task, "k": k, "days": days, **told(found)}), flush=True)


def alone_of() -> dict[str, Method]:
    """Each representation by itself, in the order that PinnerSage reports, then the encoder's."""
    names = ("last item", "decayed mean", "k-means 5", "k-means 10", "Ward 5", "Ward 10", "Ward 10 centroids")
    methods = {name: by_turns(name) for name in names}
    return methods | {"long-term": long_term(is_served=False), "long-term as served": long_term(is_served=True)}


def merges_of() -> dict[str, Method]:
    """Ways to let the interests and the long-term vector share the budget."""
    methods: dict[str, Method] = {}
    for name in ("Ward 5", "Ward 10"):
        for is_served in (False, True):
            kind = "served" if is_served else "cosine"
            for share in SHARES:
                methods[f"{name} + long-term {kind}, turns, {share}"] = by_turns(name, share, is_served=is_served)
            methods[f"{name} + long-term {kind}, best score"] = by_scores(name, is_served=is_served)
            methods[f"{name} + long-term {kind}, mixture, 0.5"] = by_scores(name, is_served=is_served, share=0.5)
    return methods


# -- methods ----------------------------------------------------------------------------------------------------------


def by_turns(name: str, share: float | None = None, *, is_served: bool = False) -> Method:
    def find(world: World, k: int, had: Timelines | None) -> NDArray[np.int32]:
        queries, items = world.queries[name], world.items_ID
        if is_served:  # popularity as one more coordinate, which only the long-term vector asks for
            items = np.column_stack([items, world.bias_I])
            queries = Queries(queries.users_Q, widened(queries.vectors_QD, 0.0), queries.weights_Q)
        if share is not None:
            queries = queries.beside(widened(world.long_UD, 1.0) if is_served else world.long_UD, share)
        return several_items(queries, world.num_users, items, k, allowed_I=world.allowed_I, exclude=had)

    return find


def long_term(*, is_served: bool) -> Method:
    def find(world: World, k: int, had: Timelines | None) -> NDArray[np.int32]:
        users = np.arange(world.num_users)
        return several_items(
            Queries(users, world.long_UD, np.ones(len(users))),
            world.num_users,
            world.items_ID,
            k,
            bias_I=world.bias_I if is_served else None,
            allowed_I=world.allowed_I,
            exclude=had,
        )

    return find


def by_scores(name: str, *, is_served: bool, share: float | None = None) -> Method:
    """Each item by the best of its scores; with a share by the mixture of all of them."""

    def find(world: World, k: int, had: Timelines | None) -> NDArray[np.int32]:
        items = np.column_stack([world.items_ID, world.bias_I])
        queries = world.queries[name]
        queries = Queries(queries.users_Q, widened(queries.vectors_QD, 0.0), queries.weights_Q)
        queries = queries.beside(widened(world.long_UD, float(is_served)), share or 0.5)
        order = np.argsort(queries.users_Q, kind="stable")
        bounds = np.searchsorted(queries.users_Q[order], np.arange(world.num_users + 1))
        lists = np.empty((world.num_users, k), dtype=np.int32)
        for start in range(0, world.num_users, USERS_AT_ONCE):
            stop = min(start + USERS_AT_ONCE, world.num_users)
            here = order[bounds[start] : bounds[stop]]
            scores_qI = queries.vectors_QD[here] @ items.T
            if share is not None:
                weights = queries.weights_Q[here, None].astype(np.float32)
                scores_qI = weights * np.exp(scores_qI / np.float32(TEMPERATURE))
            reduce = np.maximum if share is None else np.add
            scores = torch.from_numpy(reduce.reduceat(scores_qI, bounds[start:stop] - bounds[start], axis=0))
            scores[:, torch.from_numpy(~world.allowed_I)] = -torch.inf
            if had is not None:
                mask_history(scores, had, start, stop)
            lists[start:stop] = select_top(scores, k)[0]
        return lists

    return find


def widened(x_QD: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    return np.column_stack([x_QD, np.full(len(x_QD), value, dtype=np.float32)])


# -- representations --------------------------------------------------------------------------------------------------


def world_at(timelines: Timelines, vocabulary: Vocabulary, encoder: Encoder, *, cutoff_us: int, end_us: int) -> World:
    """Users with a wanted item of known vector before the cutoff and any wanted item after it."""
    split = temporal(timelines, vocabulary, cutoff_us=cutoff_us, end_us=end_us)
    items_ID = encoder.item_vectors
    has_vector = np.append(is_known_vector(items_ID), False)
    wanted = split.history.keep((vocabulary.weight_of(split.history.actions) > 0) & (split.history.items >= 0))
    readable = wanted.keep(has_vector[wanted.items])
    targets = split.targets.keep(split.targets.items >= 0)
    rows = np.flatnonzero((readable.lengths > 0) & (targets.lengths > 0))
    everything = matrix(targets.take(rows), len(items_ID))
    counts_I = decayed_counts(
        wanted.items, wanted.times_us, len(items_ID), as_of_us=cutoff_us, half_life_us=encoder.half_life_us
    )
    config = derive_config(InterestsConfig(), items_ID, vocabulary, as_of_us=cutoff_us)
    history = readable.take(rows)
    return World(
        history,
        {"all": everything, "new": everything & ~matrix(wanted.take(rows), len(items_ID))},
        items_ID,
        encoder.with_popularity(counts_I).item_bias,
        encoder.candidates,
        embed_users(encoder, timelines.take(rows), as_of_us=cutoff_us),
        queries_of(history, items_ID, vocabulary, config, cutoff_us),
    )


def matrix(timelines: Timelines, num_items: int) -> NDArray[np.bool_]:
    dense = np.zeros((timelines.num_users, num_items), dtype=np.bool_)
    dense[timelines.user_rows, timelines.items] = True
    return dense


def queries_of(
    history: Timelines, items_ID: NDArray[np.float32], vocabulary: Vocabulary, config: InterestsConfig, as_of_us: int
) -> dict[str, Queries]:
    assert config.half_life_days is not None
    users = np.arange(history.num_users)
    ones = np.ones(len(users))
    newest = history.last(config.max_events)
    ages = (as_of_us - newest.times_us) / (config.half_life_days * MICROSECONDS_PER_DAY)
    weights = vocabulary.weight_of(newest.actions) * np.exp2(-ages)
    sums_UD = np.add.reduceat(items_ID[newest.items] * weights[:, None], newest.offsets[:-1], axis=0)
    queries = {
        "last item": Queries(users, items_ID[history.items[history.offsets[1:] - 1]], ones),
        "decayed mean": Queries(users, unit(sums_UD), ones),
        "k-means 5": means(newest, items_ID, weights, 5),
        "k-means 10": means(newest, items_ID, weights, 10),
        "Ward 10 centroids": centroids(newest, items_ID, weights, config.merge_distance or 0.0, 10),
    }
    for most in (5, 10):
        kept = InterestsConfig.model_validate(config.model_dump() | {"max_interests": most})
        table = cluster_interests(history, items_ID, vocabulary, as_of_us=as_of_us, config=kept)
        row_of_user = {user: row for row, user in enumerate(history.user_ids.to_pylist())}
        rows = np.array([row_of_user[user] for user in table["user_id"].to_pylist()])
        medoids = table["medoid_index"].to_numpy()
        # A weight is 0 in float32 where an interest is a hundred half-lives old.
        weights_Q = np.maximum(table["weight"].to_numpy().astype(np.float64), 1e-9)
        queries[f"Ward {most}"] = Queries(rows, items_ID[medoids], weights_Q)
    return queries


def centroids(
    newest: Timelines, items_ID: NDArray[np.float32], weights_N: NDArray[np.float64], distance: float, most: int
) -> Queries:
    """Centroids of the heaviest Ward clusters of each user's distinct items."""
    keys, pairs_N = np.unique(newest.user_rows * len(items_ID) + newest.items, return_inverse=True)
    users_P, items_P = keys // len(items_ID), keys % len(items_ID)
    clusters_P = ward_clusters(users_P, items_P, items_ID, distance)
    num = int(clusters_P.max()) + 1
    sums_CD = np.zeros((num, items_ID.shape[1]), dtype=np.float32)
    np.add.at(sums_CD, clusters_P, items_ID[items_P])
    weights_C = np.maximum(np.bincount(clusters_P[pairs_N], weights_N, minlength=num), 1e-300)
    users_C = users_P[np.unique(clusters_P, return_index=True)[1]]
    order = np.lexsort((-weights_C, users_C))
    kept = order[np.arange(num) - np.searchsorted(users_C[order], users_C[order]) < most]
    return Queries(users_C[kept], unit(sums_CD[kept]), weights_C[kept])


def means(newest: Timelines, items_ID: NDArray[np.float32], weights_N: NDArray[np.float64], num_means: int) -> Queries:
    """Centroids of k-means over each user's distinct items."""
    rows, vectors, weights = [], [], []
    for user in range(newest.num_users):
        here = slice(newest.offsets[user], newest.offsets[user + 1])
        distinct, places = np.unique(newest.items[here], return_inverse=True)
        x_nD = items_ID[distinct]
        labels = np.arange(len(distinct))
        if len(distinct) > num_means:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fewer distinct vectors than clusters: it says so
                labels = KMeans(num_means, n_init=1, random_state=7).fit(x_nD).labels_
            labels = np.unique(labels, return_inverse=True)[1]
        num = int(labels.max()) + 1
        sums = np.zeros((num, x_nD.shape[1]), dtype=np.float32)
        np.add.at(sums, labels, x_nD)
        rows.append(np.full(num, user))
        vectors.append(unit(sums))
        weights.append(np.bincount(labels[places], weights_N[here], minlength=num))
    merged = np.maximum(np.concatenate(weights), 1e-300)
    return Queries(np.concatenate(rows), np.concatenate(vectors), merged)


def unit(x_QD: NDArray[Any]) -> NDArray[np.float32]:
    norms = np.maximum(np.linalg.norm(x_QD, axis=1, keepdims=True), 1e-30)
    return (x_QD / norms).astype(np.float32)


# -- measuring --------------------------------------------------------------------------------------------------------


def recalls(world: World, method: Method, task: str, k: int) -> NDArray[np.float64]:
    """recall@k of each user with a target of this task."""
    lists = method(world, k, world.history if task == "new" else None)
    wanted = world.targets[task]
    hits = np.take_along_axis(wanted, np.maximum(lists, 0), axis=1) & (lists >= 0)
    asked = wanted.any(axis=1)
    shares: NDArray[np.float64] = hits[asked].sum(axis=1) / wanted[asked].sum(axis=1)
    return shares


def told(found: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Means with intervals, and the differences that are asked about."""
    num = len(next(iter(found.values())))
    draws = np.random.default_rng(7).multinomial(num, np.full(num, 1 / num), NUM_DRAWS) / num
    rows = {name: interval(values, draws) for name, values in found.items()}
    served, best = found["long-term as served"], found["Ward 10"]
    steps = [
        ("decayed mean", "last item"),
        ("k-means 5", "decayed mean"),
        ("Ward 5", "k-means 5"),
        ("Ward 10", "k-means 10"),
        ("Ward 10", "Ward 10 centroids"),
    ]
    differences = {f"{after} - {before}": interval(found[after] - found[before], draws) for after, before in steps}
    for name, values in found.items():
        if "+" in name:
            differences[f"{name} - long-term as served"] = interval(values - served, draws)
            differences[f"{name} - Ward 10"] = interval(values - best, draws)
    return {"users": num, "recall": rows, "differences": differences}


def interval(values: NDArray[np.float64], draws: NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(draws @ values, [0.025, 0.975])
    return [round(float(value), 4) for value in (values.mean(), low, high)]


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(json.dumps({"seconds": round(time.perf_counter() - started, 1)}))
