"""What is known about each item besides its id: the levels of its category, the words of its title, a given vector.

Shapes: I items, F features of an item, R rows of the feature table, V width of the given vectors.
`a/b/c` has the levels `a`, `a/b` and `a/b/c`, each a row of its own. A word is a row by its digest (hashing trick,
Weinberger et al., 2009), so titles that nobody has written yet have their rows already. Words of one title alone say
no more than the id and are left out; of the rest an item keeps its rarest.
Past HASHED_PAST items the id too is looked up by digest: two rows of a table that is much smaller than the catalogue,
added up (compositional embeddings, Shi et al., 2020), which two items hardly ever share both.
Limits: four levels, eight words; letters and digits of any script, no stemming.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.errors import DataError
from sonder.core.ids import stable_hash
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary

MOST_LEVELS, MOST_WORDS = 4, 8
ROWS_PER_WORD, MOST_WORD_ROWS = 4, 1 << 16  # 4: about one word in five shares its row with another one
HASHED_PAST = 1 << 20  # items; a table of that many rows of width 64 takes 256 MiB
PROBES = 2
WORD_KEY, PROBE_KEY = "sonder/title-word/1/", "sonder/item-row/1/"
WORD = r"[\p{L}\p{N}]{2,}"


@dataclass(frozen=True)
class ContentShape:
    """What has to be known of the content to make its tables; part of the encoder's specification."""

    num_levels: int = 0
    num_words: int = 0  # of an item
    num_paths: int = 0  # rows for categories of all levels
    num_word_rows: int = 0
    vector_width: int = 0
    num_id_rows: int = 0  # of the hashed id table; 0: a row for each item

    @property
    def rows_of_an_id(self) -> int:
        return PROBES if self.num_id_rows else 1

    @property
    def num_features(self) -> int:
        return self.num_levels + self.num_words

    @property
    def num_rows(self) -> int:
        return self.num_paths + self.num_word_rows


NOTHING_KNOWN = ContentShape()


@dataclass(frozen=True)
class ItemContent:
    """The content of I items as rows of tables, and of the unknown item in a last row."""

    shape: ContentShape
    features_IF: NDArray[np.int32]  # [I + 1, F] rows, `shape.num_rows` where an item has no (further) level or word
    vectors_IV: NDArray[np.float32]  # [I + 1, V] unit rows, zero where none is given
    id_rows_IP: NDArray[np.int32]  # [I + 1, P] rows of the hashed id table; P is 0 if each item has a row of its own
    paths: tuple[str, ...] = field(repr=False, default=())  # category of each of the first rows

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Items of which anything is known [I + 1]."""
        num_I: NDArray[np.int64] = np.count_nonzero(self.features_IF < self.shape.num_rows, axis=1)
        known: NDArray[np.bool_] = np.greater(num_I + np.count_nonzero(self.vectors_IV, axis=1), 0)
        return known

    @classmethod
    def nothing(cls, num_items: int) -> ItemContent:
        """Each item has its id and a row for it, and that is all."""
        rows = np.zeros((num_items + 1, 0), dtype=np.int32)
        return cls(NOTHING_KNOWN, rows, rows.astype(np.float32), rows)


def item_content(vocabulary: Vocabulary, *, like: ItemContent | None = None) -> ItemContent:
    """Look the content of all items up; with `like` in the tables of that one, where a new category has no row."""
    levels = _levels(vocabulary)
    paths = _known_paths(levels) if like is None else like.paths
    words = _words(vocabulary)
    vectors = _vectors(vocabulary)
    shape = like.shape if like is not None else _shape(levels, paths, words, vectors, vocabulary.num_items)
    if vectors.shape[1] not in (0, shape.vector_width):
        raise DataError(
            f"Item vectors of width {vectors.shape[1]}",
            expected=f"width {shape.vector_width}, as the encoder was trained with",
            do="Give vectors of the same model, or train an encoder anew.",
        )
    if vectors.shape[1] < shape.vector_width:
        vectors = np.zeros((vocabulary.num_items + 1, shape.vector_width), dtype=np.float32)
    features = np.full((vocabulary.num_items + 1, shape.num_features), shape.num_rows, dtype=np.int32)
    rows_of_path = pl.DataFrame({"path": pl.Series(paths, dtype=pl.String)}).with_row_index("row")
    for level, names in enumerate(levels[: shape.num_levels]):
        found = pl.DataFrame({"path": names}).join(rows_of_path, on="path", how="left", maintain_order="left")["row"]
        features[:-1, level] = found.fill_null(shape.num_rows).to_numpy()
    if shape.num_words and len(words):
        places = words.filter(pl.col("place") < shape.num_words)
        rows = shape.num_paths + stable_hash(places["word"], WORD_KEY) % np.uint64(shape.num_word_rows)
        features[places["item"].to_numpy(), shape.num_levels + places["place"].to_numpy()] = rows
    return ItemContent(shape, features, vectors, _id_rows(vocabulary, shape.num_id_rows), tuple(paths))


def _shape(
    levels: list[pl.Series], paths: tuple[str, ...], words: pl.DataFrame, vectors: NDArray[np.float32], num_items: int
) -> ContentShape:
    distinct = words["word"].n_unique()
    return ContentShape(
        num_levels=len(levels),
        num_words=0 if words.is_empty() else int(words["place"].max()) + 1,  # type: ignore[arg-type]
        num_paths=len(paths),
        num_word_rows=min(_power_of_two_above(ROWS_PER_WORD * distinct), MOST_WORD_ROWS),
        vector_width=int(vectors.shape[1]),
        num_id_rows=HASHED_PAST if num_items > HASHED_PAST else 0,
    )


def _power_of_two_above(value: int) -> int:
    return 1 << (value - 1).bit_length() if value else 0


def _levels(vocabulary: Vocabulary) -> list[pl.Series]:
    """The category of each item cut after its first, second, ... level; null where it has none."""
    names = pl.Series("name", vocabulary.items.column(Col.CATEGORY)).cast(pl.String)
    known = pl.DataFrame({"name": names.unique().drop_nulls()})  # few beside the items, so they are cut, not those
    parts = pl.col("name").str.split("/")
    depth = min(int(known.select(parts.list.len().max()).item() or 0), MOST_LEVELS)
    cut = known.with_columns(
        pl.when(parts.list.len() > level).then(parts.list.head(level + 1).list.join("/")).alias(f"level {level}")
        for level in range(depth)
    )
    placed = names.to_frame().join(cut, on="name", how="left", maintain_order="left")
    return [placed[f"level {level}"] for level in range(depth)]


def _known_paths(levels: list[pl.Series]) -> tuple[str, ...]:
    return tuple(pl.concat(levels).drop_nulls().unique().sort()) if levels else ()


def _words(vocabulary: Vocabulary) -> pl.DataFrame:
    """item, word, place: the rarest words of each title, without those that stand in one title only."""
    titles = pl.Series("title", vocabulary.items.column(Col.TITLE)).cast(pl.String)
    if titles.null_count() == len(titles):
        return pl.DataFrame(schema={"item": pl.UInt32, "word": pl.String, "place": pl.Int64})
    return (
        pl.DataFrame({"words": titles.str.to_lowercase().str.extract_all(WORD).list.unique()})
        .with_row_index("item")
        .explode("words", empty_as_null=False)
        .drop_nulls()
        .rename({"words": "word"})
        .with_columns(titles=pl.len().over("word"))
        .filter(pl.col("titles") > 1)
        .sort("item", "titles", "word")
        .select("item", "word", place=pl.int_range(pl.len()).over("item"))
        .filter(pl.col("place") < MOST_WORDS)
    )


def _vectors(vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The given vectors as unit rows [I + 1, V]."""
    column = vocabulary.items.column(Col.VECTOR).combine_chunks()
    widths = pl.Series(column.value_lengths()).drop_nulls().unique().sort().to_list()
    if not widths:
        return np.zeros((vocabulary.num_items + 1, 0), dtype=np.float32)
    if len(widths) > 1:
        raise DataError(
            f"Item vectors of different widths: {', '.join(map(str, widths))}",
            expected="one width for all items that have a vector",
            do="Leave the vector empty where it is not of the same model.",
        )
    has_vector = column.is_valid().to_numpy(zero_copy_only=False)
    vectors = np.zeros((vocabulary.num_items + 1, widths[0]), dtype=np.float32)
    vectors[:-1][has_vector] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, widths[0])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        bad = int(np.flatnonzero(~np.isfinite(norms[:, 0]))[0])
        raise DataError(
            f"The vector of item {vocabulary.item_ids[bad].as_py()!r} has a number that is not finite",
            expected="finite numbers",
            do="Leave the vector of that item empty.",
        )
    unit: NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
    return unit


def _id_rows(vocabulary: Vocabulary, num_rows: int) -> NDArray[np.int32]:
    rows = np.full((vocabulary.num_items + 1, PROBES if num_rows else 0), num_rows, dtype=np.int32)
    ids = pl.Series(vocabulary.item_ids)
    for probe in range(rows.shape[1]):
        rows[:-1, probe] = stable_hash(ids, f"{PROBE_KEY}{probe}/") % np.uint64(num_rows)
    return rows
