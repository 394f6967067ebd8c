"""Groups of items where there is no catalogue: k-means over item vectors, named by what their titles share.

Shapes: I items, D embedding width, G groups.
The number of groups is the square root of half the known items, between 2 and MAX_GROUPS: a group of the median size
then holds about as many items as there are groups. A group is named by the two words of its titles that tell it apart
best (how much more often than elsewhere, times how often), without titles by its most central item's id. The result is
one path of one level per item, as a catalogue would give.
Source: Lloyd's k-means with k-means++ starts (scikit-learn) on unit vectors, which is clustering by cosine.
Limits: centres and names are learnt on MAX_SAMPLE items; an item without a vector has no group; groups of two trainings
are not matched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary
from sonder.interests.derive import is_known_vector

MAX_GROUPS = 100
MAX_SAMPLE = 100_000
SEED = 20_171
NUM_WORDS = 2
_BLOCK_ITEMS = 1 << 16
_WORD = r"[\p{L}\p{N}]{3,}"
_IS_NAMING = r"\p{L}"  # a word has a letter: sizes and years name nothing


def learn_groups(vectors_ID: NDArray[np.float32], vocabulary: Vocabulary) -> pa.Array:
    """Group name of each item [I], null for an item without a vector."""
    # By id, not by index: indices go by the whole log's popularity, and groups may not know what comes later.
    by_id = np.argsort(np.array(vocabulary.item_ids.to_pylist(), dtype=object), kind="stable")
    known = by_id[is_known_vector(vectors_ID)[by_id]]
    groups_I = np.full(len(vectors_ID), -1, dtype=np.int64)
    if not len(known):
        return pa.nulls(len(vectors_ID), pa.string())
    draw = np.random.default_rng(SEED)
    sample = known if len(known) <= MAX_SAMPLE else known[np.sort(draw.choice(len(known), MAX_SAMPLE, replace=False))]
    centres_GD = _centres(vectors_ID[sample], num_groups(len(known)))
    for start in range(0, len(known), _BLOCK_ITEMS):
        items = known[start : start + _BLOCK_ITEMS]
        groups_I[items] = np.argmin(_distances(vectors_ID[items], centres_GD), axis=1)
    faces = sample[np.argmin(_distances(vectors_ID[sample], centres_GD), axis=0)]
    titles = vocabulary.items.column(Col.TITLE).take(pa.array(sample))
    names = name_groups(groups_I[sample], titles, vocabulary.item_ids.take(pa.array(faces)).to_pylist())
    return pa.array(names, pa.string()).take(pa.array(groups_I, mask=groups_I < 0))


def num_groups(num_items: int) -> int:
    """How many groups so many known items fall into; 0 without items."""
    return min(num_items, MAX_GROUPS, max(2, round(math.sqrt(num_items / 2))))


def name_groups(groups_S: NDArray[np.int64], titles_S: pa.ChunkedArray, faces: Sequence[str]) -> list[str]:
    """A name of each group [G], unique and without a slash; `faces` are the ids of their most central items."""
    words = _telling_words(pl.Series("title", titles_S.to_pylist(), dtype=pl.String), groups_S)
    taken = Counter[str]()
    names = []
    for group, face in enumerate(faces):
        name = (words.get(group) or f"like {face}").replace("/", "-")
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return names


def _centres(x_SD: NDArray[np.float32], num: int) -> NDArray[np.float32]:
    unit_SD = _unit(x_SD)
    num_distinct = len(np.unique(unit_SD, axis=0))
    model = KMeans(min(num, num_distinct), n_init=1, random_state=SEED).fit(unit_SD)
    centres: NDArray[np.float32] = model.cluster_centers_
    return centres


def _distances(x_ND: NDArray[np.float32], centres_GD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances [N, G], up to a constant of each row."""
    distances: NDArray[np.float32] = np.einsum("gd,gd->g", centres_GD, centres_GD) - 2 * _unit(x_ND) @ centres_GD.T
    return distances


def _unit(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    return unit


def _telling_words(titles: pl.Series, groups_S: NDArray[np.int64]) -> dict[int, str]:
    """`word word` by group, for groups with titles; words of a single item name only groups of one."""
    frame = pl.DataFrame({"group": groups_S, "title": titles}).drop_nulls("title").with_row_index("item")
    words = (
        frame.with_columns(pl.col("title").str.to_lowercase().str.extract_all(_WORD).list.unique().alias("word"))
        .explode("word", empty_as_null=True, keep_nulls=False)
        .filter(pl.col("word").str.contains(_IS_NAMING))
    )
    sizes = frame.group_by("group").len("size")
    counted = (
        words.group_by("group", "word")
        .len("items")
        .join(words.group_by("word").len("items_anywhere"), on="word")
        .join(sizes, on="group")
        .filter((pl.col("items") > 1) | (pl.col("size") == 1))
        .with_columns(share=pl.col("items") / pl.col("size"), anywhere=pl.col("items_anywhere") / max(frame.height, 1))
        .with_columns(telling=pl.col("share") * (pl.col("share") / pl.col("anywhere")).log())
        .filter((pl.col("telling") > 0) | (pl.col("size") == frame.height))
        .sort("group", "telling", "word", descending=[False, True, False])
    )
    named = counted.group_by("group", maintain_order=True).agg(pl.col("word").head(NUM_WORDS).str.join(" "))
    return dict(named.iter_rows())
