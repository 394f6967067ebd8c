"""Ward clusters of each user's items, cut at a distance: many users at once, scipy's linkage for more items, one chain
for very many.

Shapes: U users, P distinct (user, item) pairs, n items of one user, B users of a block, D embedding width.
Source: Ward (1963); nearest-neighbour chain after Murtagh (1983), distances updated after Lance and Williams (1967).
Ward is reducible: a merge never brings the merged cluster nearer to a third one than both parts were. So a cluster
whose nearest neighbour is beyond the cut never changes again, and the chain lays it aside.
How a user's items are clustered depends on how many they are and on nothing of other users, to the last bit.
Limits: the distances of all pairs of a user's items are in memory, 4 n^2 bytes in the chain: 100 MB at 5,000 items.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

SMALL = (4, 8, 12, 16, 24, 32, 48)  # places of a block's users; past the last a user alone costs less
BLOCK_PLACES = 1 << 13  # of all users of a block: their vectors and distances stay in the cache
CHAIN_FROM = 1_500  # items; scipy walks the columns of half a matrix, which leaves the cache at about this size


def ward_clusters(
    users_P: NDArray[np.int64], items_P: NDArray[np.int64], vectors_ID: NDArray[np.float32], merge_distance: float
) -> NDArray[np.int64]:
    """Cluster of each pair [P], numbered from 0 through all users; the pairs of a user stand together.

    Ward's heights never fall towards the root, so a cut keeps the merges below it: a cluster is what has the same root
    in the forest of all users' leaves and kept merges. (fcluster spends 5 times its work on checks, and a sparse graph
    for its connected components costs more than the clusters of a few users do.)
    """
    num_pairs = len(users_P)
    bounds = np.append(np.flatnonzero(np.diff(users_P, prepend=-1)), num_pairs)
    # Of a node and the one that it became part of; each became part of one at most.
    edges = _edges_of_small(bounds, items_P, vectors_ID, merge_distance)
    next_merge = num_pairs
    is_large = np.diff(bounds) > SMALL[-1]
    for start, end in zip(bounds[:-1][is_large].tolist(), bounds[1:][is_large].tolist(), strict=True):
        size = end - start
        if size >= CHAIN_FROM:
            edges.append(start + chain_merges(vectors_ID[items_P[start:end]], merge_distance).T)
        else:
            tree = linkage(_distances(vectors_ID[items_P[start:end]]), "ward")
            nodes = tree[tree[:, 2] <= merge_distance, :2].astype(np.int64)
            children = np.where(nodes < size, nodes + start, nodes - size + next_merge)
            parents = np.repeat(np.arange(next_merge, next_merge + len(nodes)), 2)
            edges.append(np.stack([children.ravel(), parents]))
            next_merge += len(nodes)
    if not edges:
        return np.arange(num_pairs)
    parts, wholes = np.concatenate(edges, axis=1)
    _, first, root_P = np.unique(_roots(parts, wholes, next_merge)[:num_pairs], return_index=True, return_inverse=True)
    places = np.empty(len(first), dtype=np.int64)
    places[np.argsort(first)] = np.arange(len(first))
    return places[root_P]


def _edges_of_small(
    bounds: NDArray[np.int64], items_P: NDArray[np.int64], vectors_ID: NDArray[np.float32], merge_distance: float
) -> list[NDArray[np.int64]]:
    """Pairs that became part of another pair's cluster, of users with few items: [pair, the cluster's first pair]."""
    sizes_U, edges = np.diff(bounds), []
    for fewer, places in pairwise((1, *SMALL)):
        users = np.flatnonzero((sizes_U > fewer) & (sizes_U <= places))
        for first in range(0, len(users), BLOCK_PLACES // places):
            block = users[first : first + BLOCK_PLACES // places]
            starts_B, sizes_B = bounds[block], sizes_U[block]
            is_item_Bn = np.arange(places) < sizes_B[:, None]
            pairs_Bn = starts_B[:, None] + np.where(is_item_Bn, np.arange(places), 0)
            squared_Bnn = _squared_distances(vectors_ID[items_P[pairs_Bn]]).astype(np.float64)
            squared_Bnn[~(is_item_Bn[:, :, None] & is_item_Bn[:, None, :])] = np.inf
            roots_Bn = merge_many(squared_Bnn, merge_distance)
            is_part_Bn = roots_Bn != np.arange(places)
            edges.append(np.stack([pairs_Bn[is_part_Bn], (starts_B[:, None] + roots_Bn)[is_part_Bn]]))
    return edges


def merge_many(squared_Bnn: NDArray[np.float64], merge_distance: float) -> NDArray[np.int64]:
    """First place of the cluster of each place [B, n], from squared distances, which are used up.

    The nearest two of each user are merged at once, of equally near ones those with the first places, until none is
    within the cut. Infinitely far is what is no item.
    """
    num, places, _ = squared_Bnn.shape
    squared_Bnn[:, np.arange(places), np.arange(places)] = np.inf
    roots_Bn = np.tile(np.arange(places), (num, 1))
    sizes_Bn = np.ones((num, places))
    at_B, cut = np.arange(num), merge_distance**2  # rows of the answer that may merge yet
    while True:
        nearest_B = squared_Bnn.reshape(len(at_B), -1).argmin(axis=1)
        kept_B, gone_B = np.divmod(nearest_B, places)
        rows_B = np.arange(len(at_B))
        between_B = squared_Bnn[rows_B, kept_B, gone_B]
        is_within = between_B <= cut
        if not is_within.all():
            at_B, kept_B, gone_B = at_B[is_within], kept_B[is_within], gone_B[is_within]
            between_B, squared_Bnn, sizes_Bn = between_B[is_within], squared_Bnn[is_within], sizes_Bn[is_within]
            rows_B = np.arange(len(at_B))
        if len(at_B) == 0:
            return roots_Bn
        ours_B1, theirs_B1 = sizes_Bn[rows_B, kept_B][:, None], sizes_Bn[rows_B, gone_B][:, None]
        merged_Bn = (ours_B1 + sizes_Bn) * squared_Bnn[rows_B, kept_B]
        merged_Bn += (theirs_B1 + sizes_Bn) * squared_Bnn[rows_B, gone_B] - sizes_Bn * between_B[:, None]
        merged_Bn /= ours_B1 + theirs_B1 + sizes_Bn
        merged_Bn[rows_B, kept_B] = merged_Bn[rows_B, gone_B] = np.inf
        squared_Bnn[rows_B, kept_B] = squared_Bnn[rows_B, :, kept_B] = merged_Bn
        squared_Bnn[rows_B, gone_B] = squared_Bnn[rows_B, :, gone_B] = np.inf
        sizes_Bn[rows_B, kept_B] += theirs_B1[:, 0]
        roots_Bn[at_B] = np.where(roots_Bn[at_B] == gone_B[:, None], kept_B[:, None], roots_Bn[at_B])


def _roots(parts: NDArray[np.int64], wholes: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """What each node ends up in, by doubling the steps until nothing moves: as many rounds as a depth has bits."""
    above = np.arange(num_nodes)
    above[parts] = wholes
    while True:
        further = above[above]
        if np.array_equal(further, above):
            return above
        above = further


def chain_merges(x_nD: NDArray[np.float32], merge_distance: float) -> NDArray[np.int64]:
    """The merges within the cut, each as one item of both its parts -> int64 [merges, 2], in the chain's order."""
    squared_nn = _squared_distances(x_nD)
    np.fill_diagonal(squared_nn, np.inf)
    cut = np.float32(merge_distance) ** 2
    sizes_n = np.ones(len(x_nD), dtype=np.float32)
    is_open = np.ones(len(x_nD), dtype=np.bool_)
    merges: list[tuple[int, int]] = []
    chain: list[int] = []
    first_open = 0
    while True:
        if not chain:
            first_open += int(is_open[first_open:].argmax())
            if not is_open[first_open]:
                return np.array(merges, dtype=np.int64).reshape(-1, 2)
            chain.append(first_open)
        tip = chain[-1]
        nearest = int(squared_nn[tip].argmin())
        if len(chain) > 1 and squared_nn[tip, chain[-2]] <= squared_nn[tip, nearest]:
            nearest = chain[-2]  # of equally near ones the one before: else a tie could send the chain in circles
        if squared_nn[tip, nearest] > cut or nearest == tip:
            is_open[tip] = False
            chain.pop()
        elif len(chain) > 1 and nearest == chain[-2]:
            del chain[-2:]
            _merge(squared_nn, sizes_n, tip, nearest)
            is_open[tip] = False
            merges.append((tip, nearest))
        else:
            chain.append(nearest)


def _merge(squared_nn: NDArray[np.float32], sizes_n: NDArray[np.float32], gone: int, kept: int) -> None:
    """Let `kept` stand for both, in place; the row and the column of `gone` become infinite."""
    ours, theirs, between = sizes_n[kept], sizes_n[gone], squared_nn[kept, gone]
    merged_n = (ours + sizes_n) * squared_nn[kept] + (theirs + sizes_n) * squared_nn[gone] - sizes_n * between
    merged_n /= ours + theirs + sizes_n
    merged_n[[kept, gone]] = np.inf
    squared_nn[kept] = squared_nn[:, kept] = merged_n
    squared_nn[:, gone] = np.inf
    sizes_n[kept] += theirs


def _distances(x_nD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances of all pairs in scipy's condensed order; by the Gram matrix, faster than pdist."""
    condensed: NDArray[np.float64] = squareform(_squared_distances(x_nD).astype(np.float64), checks=False)
    return np.sqrt(condensed, out=condensed)


def _squared_distances(x_nD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of all pairs [n, n], or of each user's [B, n, n]."""
    gram_nn: NDArray[np.float32] = x_nD @ x_nD.swapaxes(-1, -2)
    squares_n = np.diagonal(gram_nn, axis1=-2, axis2=-1).copy()
    gram_nn *= -2
    gram_nn += squares_n[..., None, :]
    gram_nn += squares_n[..., :, None]
    np.maximum(gram_nn, 0.0, out=gram_nn)
    return gram_nn
