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

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary

WORD = r"\p{L}[\p{L}\p{N}]{2,}"
MOST_WORDS = 3
SHOWN_LEVELS = 2
LEVEL_SEPARATOR, ADDITION = " › ", " · "


@dataclass(frozen=True)
class _OfItems:
    """Some rows for each item, found without a pass over the catalogue."""

    rows: pl.DataFrame  # by item
    offsets: NDArray[np.int64]  # [I + 1]; the rows of item i are offsets[i]:offsets[i + 1]

    @classmethod
    def of(cls, rows: pl.DataFrame, num_items: int) -> _OfItems:
        by_item = rows.sort("item", maintain_order=True)
        return cls(by_item.drop("item"), np.searchsorted(by_item["item"].to_numpy(), np.arange(num_items + 1)))

    def joined(self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64]) -> pl.DataFrame:
        """The rows of each pair's item, beside its cluster."""
        lengths_P = self.offsets[items_P + 1] - self.offsets[items_P]
        before_P = np.cumsum(lengths_P) - lengths_P
        places = np.arange(lengths_P.sum()) + np.repeat(self.offsets[items_P] - before_P, lengths_P)
        found: pl.DataFrame = self.rows[places]
        return found.with_columns(pl.Series("cluster", np.repeat(clusters_P, lengths_P)))


@dataclass(frozen=True)
class Naming:
    """What the names are made of; made once for a catalogue, then used for any number of users."""

    items: pl.DataFrame  # item_id, title, category; row i is item_index i
    levels: _OfItems  # depth, path: each category that holds an item
    words: _OfItems  # word, place in the title, idf

    @classmethod
    def of(cls, vocabulary: Vocabulary, *, as_of_us: int) -> Naming:
        """Read the catalogue of a vocabulary as it was known at `as_of`."""
        table = pl.from_arrow(vocabulary.items.select([Col.ITEM_ID, Col.TITLE, Col.CATEGORY, Col.FIRST_SEEN]))
        assert isinstance(table, pl.DataFrame)
        items = table.drop(Col.FIRST_SEEN).with_columns(item=pl.int_range(pl.len()))
        is_seen = table[Col.FIRST_SEEN].cast(pl.Int64).fill_null(as_of_us) < as_of_us
        words = _words(items, items["item"].filter(is_seen))
        return cls(items, _OfItems.of(_levels(items), len(items)), _OfItems.of(words, len(items)))

    def categories(
        self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], medoids_C: NDArray[np.int64]
    ) -> pa.Array:
        """The most common category of each cluster [C]; of equals the medoid's, else the first by name."""
        categories = self.items[Col.CATEGORY]
        pairs = pl.DataFrame({"cluster": clusters_P, Col.CATEGORY: categories[items_P]}).drop_nulls()
        pairs = pairs.with_columns(categories[medoids_C][pairs["cluster"]].alias("medoid_category"))
        own = pl.col(Col.CATEGORY) == pl.col("medoid_category")
        chosen = (
            pairs.group_by("cluster", Col.CATEGORY)
            .agg(pl.len(), own.first().fill_null(False).alias("is_own"))
            .sort("cluster", "len", "is_own", Col.CATEGORY, descending=[False, True, True, False])
            .group_by("cluster", maintain_order=True)
            .first()
        )
        return _spread(chosen, Col.CATEGORY, len(medoids_C)).to_arrow().cast(pa.string())

    def names(
        self,
        clusters_P: NDArray[np.int64],
        items_P: NDArray[np.int64],
        medoids_C: NDArray[np.int64],
        users_C: NDArray[np.int64],
    ) -> pa.Array:
        """Name of each cluster [C], never null; `users_C` is the user of each."""
        frame = (
            self.items[medoids_C]
            .select(
                pl.Series("user", users_C),
                self._shared_category(clusters_P, items_P, len(medoids_C)),
                self._shared_words(clusters_P, items_P, len(medoids_C)),
                pl.coalesce(Col.TITLE, Col.ITEM_ID).alias("medoid"),
            )
            .with_columns(detail=pl.coalesce("words", "medoid"))
            .with_columns(name=pl.coalesce("category", "detail"))
        )
        is_repeated = pl.struct("user", "name").is_duplicated() & pl.col("category").is_not_null()
        named = pl.when(is_repeated).then(pl.col("name") + ADDITION + pl.col("detail")).otherwise("name")
        return frame.select(named)["name"].to_arrow().cast(pa.string())

    def _shared_category(
        self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], num_clusters: int
    ) -> pl.Series:
        """The deepest category of more than half of a cluster's items, its last levels readable; null where none."""
        size = np.bincount(clusters_P, minlength=num_clusters)[clusters_P]
        sizes = pl.DataFrame({"cluster": clusters_P, "size": size}).unique()
        shared = (
            self.levels.joined(clusters_P, items_P)
            .group_by("cluster", "depth", "path")
            .len()
            .join(sizes, on="cluster")
            .filter(2 * pl.col("len") > pl.col("size"))  # so there is one at most on each level
            .sort("cluster", "depth", descending=[False, True])
            .group_by("cluster", maintain_order=True)
            .first()
        )
        readable = pl.col("path").str.split("/").list.tail(SHOWN_LEVELS).list.join(LEVEL_SEPARATOR)
        return _spread(shared.with_columns(readable.str.replace_all("_", " ")), "path", num_clusters).alias("category")

    def _shared_words(self, clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], num_clusters: int) -> pl.Series:
        """The words that tell a cluster's titles from the catalogue's; null where no two titles share any."""
        chosen = (
            self.words.joined(clusters_P, items_P)
            .group_by("cluster", "word")
            .agg(pl.len(), pl.col("place").mean(), pl.col("idf").first())
            .filter((pl.col("len") >= 2) & (pl.col("idf") > 0))
            .with_columns(score=pl.col("len") * pl.col("idf"))
            .sort("cluster", "score", "word", descending=[False, True, False])
            .group_by("cluster", maintain_order=True)
            .head(MOST_WORDS)
            .sort("cluster", "place", "word")
            .group_by("cluster", maintain_order=True)
            .agg(pl.col("word").str.join(" "))
        )
        return _spread(chosen, "word", num_clusters).alias("words")


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


def _spread(frame: pl.DataFrame, name: str, num_clusters: int) -> pl.Series:
    """The column of the clusters that have one, null for the others -> [C]."""
    every = pl.DataFrame({"cluster": pl.int_range(num_clusters, eager=True)})
    return every.join(frame.select("cluster", name), on="cluster", how="left", maintain_order="left")[name]
