"""Nearest vectors by an inverted file (IVF) where an exact search would take milliseconds, exact ones below.

Shapes: Q queries, N vectors, D width, k answers. float32, inner products.
An inverted file of faiss over vectors of half precision: k-means cells, the best by rounded products within the
`nprobe` nearest cells of a query, answered with their exact products. It is built in seconds where a graph (HNSW)
takes minutes, so a deployment builds it when it loads a release and nothing is stored
(docs/decisions/0005-search-large-catalogues-by-an-inverted-file.md).
Rule: `nprobe` is the smallest power of two that finds AIM of the exact 100 nearest for a sample of queries, measured
without a filter and with random ones, which are applied inside the search. Few allowed vectors are searched exactly,
and so is a query that got fewer answers than k: k answers come back wherever k exist.
Memory: half of the vectors once more, and a temporary file of that size while it is built.
Limits: cells are those of the first build; recall holds for queries like the sample.
"""

from __future__ import annotations

import tempfile

import faiss
import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.retrieval.exact import Found, similar_users, top_items

EXACT_UP_TO = 50_000  # vectors; one query takes 1 to 2 ms then (benchmarks/retrieval)
AIM, MEASURED_AT = 0.97, 100  # recall@100 on the sample, above the .95 that is promised
FEW = 20_000  # allowed vectors up to which an exact search over them alone costs less
SAMPLE = 200
SHARES = (1.0, 0.3, 0.1, 0.03)  # of allowed vectors, at which the cells to look at are measured
_TRAINING_POINTS = 64  # a cell, for k-means


class VectorIndex:
    """N vectors that can be searched by inner product."""

    def __init__(self, vectors_ND: NDArray[np.float32], sample_QD: NDArray[np.float32], *, seed: int = 7) -> None:
        """`sample_QD`: queries such as will come; at most SAMPLE of them are used."""
        self.vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        self._index: faiss.IndexIVFScalarQuantizer | None = None
        self._nprobes: dict[float, int] = {}  # share of allowed vectors -> cells to look at, shares falling
        if len(vectors_ND) > EXACT_UP_TO and len(sample_QD):
            self._index = _trained(self.vectors_ND, seed)
            drawn = np.random.default_rng(seed).permutation(len(sample_QD))[:SAMPLE]
            self._calibrate(np.ascontiguousarray(sample_QD[drawn], dtype=np.float32), np.random.default_rng(seed))

    @property
    def nprobe(self) -> int:
        """Cells that a query without a filter looks at; 0 for an exact search."""
        return self._nprobes.get(1.0, 0)

    @property
    def is_exact(self) -> bool:
        return self._index is None

    def search(
        self,
        queries_QD: NDArray[np.float32],
        k: int,
        *,
        allowed_N: NDArray[np.bool_] | None = None,
        exclude: Timelines | None = None,
    ) -> Found:
        """Nearest k of each query -> rows int32 [Q, k], scores float32 [Q, k], best first, -1 and -inf past the end.

        `allowed_N` limits the answers; `exclude` holds one history per query, none of whose items is an answer.
        """
        num_allowed = len(self.vectors_ND) if allowed_N is None else int(allowed_N.sum())
        if self._index is None:
            return _exact(queries_QD, self.vectors_ND, k, allowed_N, exclude)
        longest = 0 if exclude is None or not exclude.num_users else int(np.diff(exclude.offsets).max())
        num = min(k + longest, num_allowed)  # as many as may be left out more
        is_few = allowed_N is not None and num_allowed <= max(FEW, num)
        if is_few or num == 0:
            found = self._among(queries_QD, num, allowed_N)
        else:
            nprobe = self._nprobe_of(num_allowed / len(self.vectors_ND))
            found = self._within_cells(queries_QD, num, allowed_N, nprobe)
            short = np.flatnonzero((found[0] < 0).any(axis=1))
            if len(short):
                found[0][short], found[1][short] = self._among(queries_QD[short], num, allowed_N)
        return _best(*found, k, exclude)

    def _within_cells(
        self, queries_QD: NDArray[np.float32], k: int, allowed_N: NDArray[np.bool_] | None, nprobe: int
    ) -> Found:
        assert self._index is not None
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        if allowed_N is not None:
            # The selector holds a pointer into the bits: they live until the search has ended.
            bits = np.packbits(allowed_N, bitorder="little")
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=faiss.IDSelectorBitmap(bits))
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        _, rows = self._index.search(queries_QD, k, params=parameters)
        rows_QK: NDArray[np.int32] = rows.astype(np.int32)
        scores_QK = np.einsum("qd,qkd->qk", queries_QD, self.vectors_ND[np.maximum(rows_QK, 0)])
        return rows_QK, np.where(rows_QK < 0, np.float32(-np.inf), scores_QK)

    def _among(self, queries_QD: NDArray[np.float32], k: int, allowed_N: NDArray[np.bool_] | None) -> Found:
        """Exact, over the allowed vectors alone; k is at most their number."""
        if k == 0:
            none = np.empty((len(queries_QD), 0))
            return none.astype(np.int32), none.astype(np.float32)
        if allowed_N is None:
            return _exact(queries_QD, self.vectors_ND, k, None, None)
        allowed = np.flatnonzero(allowed_N).astype(np.int32)
        places_QK, scores_QK = _exact(queries_QD, self.vectors_ND[allowed], k, None, None)
        return allowed[places_QK], scores_QK

    def _nprobe_of(self, share: float) -> int:
        """Measured at the next smaller share, or in proportion below the smallest one."""
        smaller = [nprobe for measured, nprobe in self._nprobes.items() if measured <= share]
        if smaller:
            return smaller[0]
        smallest, nprobe = list(self._nprobes.items())[-1]
        return int(np.ceil(nprobe * smallest / share))

    def _calibrate(self, sample_QD: NDArray[np.float32], draw: np.random.Generator) -> None:
        """Fewest cells for AIM, doubling from those of the last share: a random filter spreads the nearest further."""
        assert self._index is not None
        nprobe, num_vectors = 1, len(self.vectors_ND)
        for share in SHARES:
            allowed_N = None if share == 1.0 else draw.random(num_vectors) < share
            num = num_vectors if allowed_N is None else int(allowed_N.sum())
            k = min(MEASURED_AT, num)
            if k == 0 or (allowed_N is not None and num <= FEW):
                return
            wanted, _ = self._among(sample_QD, k, allowed_N)
            while nprobe < self._index.nlist:
                found, _ = self._within_cells(sample_QD, k, allowed_N, nprobe)
                if recall(found, wanted) >= AIM:
                    break
                nprobe = min(2 * nprobe, self._index.nlist)
            self._nprobes[share] = nprobe


def recall(found_QK: NDArray[np.int32], wanted_QK: NDArray[np.int32]) -> float:
    """Share of the wanted rows that were found, whatever their order; -1 is no row."""
    num_wanted = int((wanted_QK >= 0).sum())
    hits = sum(len(np.intersect1d(f[f >= 0], w[w >= 0])) for f, w in zip(found_QK, wanted_QK, strict=True))
    return hits / num_wanted if num_wanted else 1.0


def _trained(vectors_ND: NDArray[np.float32], seed: int) -> faiss.IndexIVFScalarQuantizer:
    num_vectors, dim = vectors_ND.shape
    num_cells = int(2 * np.sqrt(num_vectors))
    half, by_residual = faiss.ScalarQuantizer.QT_fp16, False
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, num_cells, half, faiss.METRIC_INNER_PRODUCT, by_residual
    )
    index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = 10, seed, _TRAINING_POINTS
    index.train(vectors_ND)
    index.add(vectors_ND)
    return _without_room(index)


def _without_room(index: faiss.IndexIVFScalarQuantizer) -> faiss.IndexIVFScalarQuantizer:
    """Cells grow by doubling, and half of that room stays empty; what is read from a file has the size it needs.

    A full disk costs the room and nothing else.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="sonder-index-") as file:
            faiss.write_index(index, file.name)
            return faiss.read_index(file.name)
    except (OSError, RuntimeError):
        return index


def _exact(
    queries_QD: NDArray[np.float32],
    vectors_ND: NDArray[np.float32],
    k: int,
    allowed_N: NDArray[np.bool_] | None,
    exclude: Timelines | None,
) -> Found:
    if allowed_N is None and exclude is None:
        return similar_users(queries_QD, vectors_ND, k)
    return top_items(queries_QD, vectors_ND, k, allowed_I=allowed_N, exclude=exclude)


def _best(rows_QN: NDArray[np.int32], scores_QN: NDArray[np.float32], k: int, exclude: Timelines | None) -> Found:
    """The first k of more answers, without those of the own history, filled up with -1."""
    if exclude is not None:
        scores_QN[_is_excluded(rows_QN, exclude)] = -np.inf
    order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, max(0, k - order.shape[1])))
    rows_QK = np.pad(np.take_along_axis(rows_QN, order, axis=1), missing, constant_values=-1)
    scores_QK = np.pad(np.take_along_axis(scores_QN, order, axis=1), missing, constant_values=-np.inf)
    rows_QK[np.isneginf(scores_QK)] = -1
    return rows_QK, scores_QK


def _is_excluded(found_QK: NDArray[np.int32], exclude: Timelines) -> NDArray[np.bool_]:
    """Which answers are of the query's own history [Q, K]."""
    width = max(int(found_QK.max(initial=0)), int(exclude.items.max(initial=0))) + 1
    owners = np.repeat(np.arange(exclude.num_users), np.diff(exclude.offsets))
    had = owners[exclude.items >= 0] * width + exclude.items[exclude.items >= 0].astype(np.int64)
    asked = np.arange(len(found_QK))[:, None] * width + found_QK.astype(np.int64)
    excluded: NDArray[np.bool_] = np.isin(asked, had) & (found_QK >= 0)
    return excluded
