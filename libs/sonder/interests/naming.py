"""A readable name and a category for each cluster of items, from the catalogue alone.

Shapes: I items, P distinct (user, item) pairs, C clusters, L levels of the categories.
name, the first of these that there is:
1. the last two levels of the deepest category that more than half of the cluster's items share: `garden › tools`
2. of items with titles, up to three words that at least two of the titles hold, by share of the cluster's titles that
   hold it times log(titles / titles that hold it), in the order in which the titles use them: `heart light holder`
3. the medoid's title, or its id where it has none; this is also the name of an interest in a single item
Two interests of a user whose names are alike (two clusters in one category) get 2 or 3 added: `garden › tools · rake`.
Source: class-based tf-idf (Grootendorst, BERTopic, 2022), with the catalogue as the population and not the users' other
clusters: so one user alone, online, gets the names that the whole batch gave.
Limits: words are runs of three letters or more, in lower case, no stemming and no stop words but by their frequency; a
cluster without a catalogue is named by an id. The population is the items seen before `as_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary

WORD = r"\p{L}[\p{L}\p{N}]{2,}"
MOST_WORDS = 3
SHOWN_LEVELS = 2
LEVEL_SEPARATOR, ADDITION = " › ", " · "


@dataclass(frozen=True)
class _OfItems:
    """Some texts for each item, found without a pass over the catalogue; a text is a code in the order of the texts."""

    codes: NDArray[np.int64]  # by item
    places: NDArray[np.int64]  # beside each: where in the title a word stands, how deep a category lies
    offsets: NDArray[np.int64]  # [I + 1]; the rows of item i are offsets[i]:offsets[i + 1]
    texts: NDArray[np.object_]  # of each code, sorted

    @classmethod
    def of(cls, rows: pl.DataFrame, text: str, place: str, num_items: int) -> _OfItems:
        by_item = rows.sort("item", maintain_order=True)
        texts, codes = np.unique(by_item[text].to_numpy().astype(object), return_inverse=True)
        offsets = np.searchsorted(by_item["item"].to_numpy(), np.arange(num_items + 1))
        return cls(codes.astype(np.int64), by_item[place].to_numpy().astype(np.int64), offsets, texts)

    def counted(self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64]) -> _Counted:
        """How often each text stands at the items of each cluster."""
        lengths_P = self.offsets[items_P + 1] - self.offsets[items_P]
        before_P = np.cumsum(lengths_P) - lengths_P
        rows = np.arange(lengths_P.sum()) + np.repeat(self.offsets[items_P] - before_P, lengths_P)
        keys = np.repeat(clusters_P, lengths_P) * max(1, len(self.texts)) + self.codes[rows]
        distinct, pair, counts = np.unique(keys, return_inverse=True, return_counts=True)
        sums = np.bincount(pair, self.places[rows], minlength=len(distinct))
        return _Counted(distinct // max(1, len(self.texts)), distinct % max(1, len(self.texts)), counts, sums / counts)


@dataclass(frozen=True)
class _Counted:
    """Pairs of a cluster and a text, by both."""

    clusters: NDArray[np.int64]
    codes: NDArray[np.int64]
    counts: NDArray[np.int64]
    places: NDArray[np.float64]  # mean

    def keep(self, rows: NDArray[Any]) -> _Counted:
        return _Counted(self.clusters[rows], self.codes[rows], self.counts[rows], self.places[rows])


@dataclass(frozen=True)
class Naming:
    """What the names are made of; made once for a catalogue, then used for any number of users."""

    labels: pa.LargeStringArray  # [I] title of each item, its id where it has none
    categories_I: NDArray[np.int64]  # code of each item's category in `categories`, -1 without one
    category_names: NDArray[np.object_]  # sorted
    levels: _OfItems  # each category that holds an item, and how deep it lies
    words: _OfItems  # each word of an item's title, and its place there
    idf: NDArray[np.float64]  # of each word; 0 where no title of the population has it
    readable: NDArray[np.object_]  # of each category of `levels`: its last levels

    @classmethod
    def of(cls, vocabulary: Vocabulary, *, as_of_us: int) -> Naming:
        """Read the catalogue of a vocabulary as it was known at `as_of`."""
        table = pl.from_arrow(vocabulary.items.select([Col.ITEM_ID, Col.TITLE, Col.CATEGORY, Col.FIRST_SEEN]))
        assert isinstance(table, pl.DataFrame)
        items = table.drop(Col.FIRST_SEEN).with_columns(item=pl.int_range(pl.len()))
        is_seen = table[Col.FIRST_SEEN].cast(pl.Int64).fill_null(as_of_us) < as_of_us
        rows = _words(items, items["item"].filter(is_seen))
        words = _OfItems.of(rows, "word", "place", len(items))
        idf = np.zeros(len(words.texts))
        known = rows.unique("word").sort("word")
        idf[np.searchsorted(words.texts, known["word"].to_numpy().astype(object))] = known["idf"].fill_null(0.0)
        levels = _OfItems.of(_levels(items), "path", "depth", len(items))
        names = [path.split("/")[-SHOWN_LEVELS:] for path in levels.texts]
        readable = np.array([LEVEL_SEPARATOR.join(parts).replace("_", " ") for parts in names], dtype=object)
        held = items[Col.CATEGORY].is_not_null().to_numpy()
        codes = np.full(len(items), -1, dtype=np.int64)
        category_names, codes[held] = np.unique(
            items[Col.CATEGORY].drop_nulls().to_numpy().astype(object), return_inverse=True
        )
        labels = items.select(pl.coalesce(Col.TITLE, Col.ITEM_ID))[Col.TITLE].to_arrow().cast(pa.large_string())
        return cls(labels, codes, category_names, levels, words, idf, readable)

    def categories(
        self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], medoids_C: NDArray[np.int64]
    ) -> pa.Array:
        """The most common category of each cluster [C]; of equals the medoid's, else the first by name."""
        codes_P = self.categories_I[items_P]
        width = max(1, len(self.category_names))
        keys, counts = np.unique((clusters_P * width + codes_P)[codes_P >= 0], return_counts=True)
        clusters, codes = keys // width, keys % width
        is_own = codes == self.categories_I[medoids_C][clusters]
        first = _first_of(np.lexsort((codes, ~is_own, -counts, clusters)), clusters)
        return pa.array(_spread(self.category_names[codes[first]], clusters[first], len(medoids_C)), pa.string())

    def names(
        self,
        clusters_P: NDArray[np.int64],
        items_P: NDArray[np.int64],
        medoids_C: NDArray[np.int64],
        users_C: NDArray[np.int64],
    ) -> pa.Array:
        """Name of each cluster [C], never null; `users_C` is the user of each."""
        # By arrays and not by a query: waking the threads of one costs more than the names of a micro-batch do.
        category = self._shared_category(clusters_P, items_P, len(medoids_C))
        words = self._shared_words(clusters_P, items_P, len(medoids_C))
        detail = pc.coalesce(words, self.labels.take(pa.array(medoids_C)).cast(pa.string()))
        name = pc.coalesce(category, detail)
        is_repeated = _is_repeated(users_C, name) & category.is_valid().to_numpy(zero_copy_only=False)
        if not is_repeated.any():
            return name
        return pc.if_else(pa.array(is_repeated), pc.binary_join_element_wise(name, detail, ADDITION), name)

    def _shared_category(
        self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], num_clusters: int
    ) -> pa.Array:
        """The deepest category of more than half of a cluster's items, its last levels readable; null where none."""
        found = self.levels.counted(clusters_P, items_P)
        sizes_C = np.bincount(clusters_P, minlength=num_clusters)
        shared = found.keep(2 * found.counts > sizes_C[found.clusters])  # so there is one at most on each level
        first = _first_of(np.lexsort((-shared.places, shared.clusters)), shared.clusters)
        names = _spread(self.readable[shared.codes[first]], shared.clusters[first], num_clusters)
        return pa.array(names, pa.string())

    def _shared_words(self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], num_clusters: int) -> pa.Array:
        """The words that tell a cluster's titles from the catalogue's; null where no two titles share any."""
        found = self.words.counted(clusters_P, items_P)
        shared = found.keep((found.counts >= 2) & (self.idf[found.codes] > 0))
        scores = shared.counts * self.idf[shared.codes]
        best = _first_of(np.lexsort((shared.codes, -scores, shared.clusters)), shared.clusters, MOST_WORDS)
        chosen = shared.keep(best)
        chosen = chosen.keep(np.lexsort((chosen.codes, chosen.places, chosen.clusters)))
        starts = np.flatnonzero(np.diff(chosen.clusters, prepend=-1))
        words = np.split(self.words.texts[chosen.codes], starts[1:]) if len(starts) else []
        joined = np.array([" ".join(part) for part in words], dtype=object)
        return pa.array(_spread(joined, chosen.clusters[starts], num_clusters), pa.string())


def _levels(items: pl.DataFrame) -> pl.DataFrame:
    parts = items.select("item", pl.col(Col.CATEGORY).str.split("/").alias("parts")).drop_nulls()
    most = int(parts["parts"].list.len().max() or 0)  # type: ignore[arg-type]
    columns = [
        parts.filter(pl.col("parts").list.len() >= depth).select(
            "item",
            pl.lit(depth, pl.Int8).alias("depth"),
            pl.col("parts").list.head(depth).list.join("/").alias("path"),
        )
        for depth in range(1, most + 1)
    ]
    return pl.concat([pl.DataFrame(schema={"item": pl.Int64, "depth": pl.Int8, "path": pl.String}), *columns])


def _words(items: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    words = (
        items.select("item", pl.col(Col.TITLE).str.to_lowercase().str.extract_all(WORD).alias("word"))
        .explode("word", empty_as_null=True)
        .drop_nulls()
        .with_columns(place=pl.int_range(pl.len()).over("item"))
        .unique(["item", "word"], keep="first", maintain_order=True)
    )
    population = words.filter(pl.col("item").is_in(seen.implode()))
    num_titles = population["item"].n_unique()
    idf = population.group_by("word").agg((num_titles / pl.len()).log().alias("idf"))
    return words.join(idf, on="word", maintain_order="left")


def _is_repeated(users_C: NDArray[np.int64], names: pa.Array) -> NDArray[np.bool_]:
    """Clusters [C] whose name another one of the same user has too."""
    coded = names.dictionary_encode()
    keys_C = users_C * max(1, len(coded.dictionary)) + coded.indices.to_numpy(zero_copy_only=False)
    _, pair_C, counts = np.unique(keys_C, return_inverse=True, return_counts=True)
    is_repeated: NDArray[np.bool_] = counts[pair_C] > 1
    return is_repeated


def _first_of(order: NDArray[np.int64], clusters: NDArray[np.int64], num: int = 1) -> NDArray[np.int64]:
    """The first `num` rows of each cluster in an order that is by cluster first."""
    in_order = clusters[order]
    starts = np.flatnonzero(np.diff(in_order, prepend=-1))
    places = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    first: NDArray[np.int64] = order[places < num]
    return first


def _spread(texts: NDArray[np.object_], clusters: NDArray[np.int64], num_clusters: int) -> list[str | None]:
    """The text of the clusters that have one, None for the others [C]."""
    spread = np.full(num_clusters, None, dtype=object)
    spread[clusters] = texts
    found: list[str | None] = spread.tolist()
    return found
