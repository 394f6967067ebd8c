"""What two releases published of the same users, in the same order, with the histories that they are read from.

Users are those of some whole buckets of the build's snapshot that both releases have a profile of. A parent whose
snapshot has another number of buckets keeps them in other files; then those are read that hold one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sonder.core.errors import InvalidRule, NotFound
from sonder.core.ids import bucket_of, unit_interval
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.evaluation.stability import MembershipChurn, membership_churn
from sonder.history.snapshot import buckets_of, read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_counts import evaluate
from sonder.profiles.audience_fields import schema_of
from sonder.profiles.audience_reading import ReleaseUsers
from sonder.profiles.record import PROFILE_SCHEMA, profile_file
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_heads
from sonder.segments.audiences import AudienceCatalogue
from sonder.segments.rules.rule import Rule, fields_of_rules

SAMPLE_KEY = "sonder/stability/users/1/"
_COLUMNS = ["user_id", "segments.lifecycle", "segments.cluster_id", "scores.list.element.name",
            "scores.list.element.value", "embedding"]  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Profiles of U users of one release, and where their histories lie."""

    users: pl.DataFrame  # user_id, lifecycle, cluster_id, names and values (lists), embedding; in one order for both
    dim: int
    history: Folder  # of the build's snapshot, for both sides
    buckets: tuple[int, ...]

    @property
    def num_users(self) -> int:
        return self.users.height

    @property
    def vectors_UD(self) -> NDArray[np.float32]:
        """Zero for a user without one."""
        vectors_UD = np.zeros((self.num_users, self.dim), np.float32)
        known = self.users["embedding"].list.len().fill_null(0).to_numpy() == self.dim
        flat = self.users["embedding"].filter(pl.Series(known)).explode().to_numpy()
        vectors_UD[known] = flat.reshape(-1, self.dim) if known.any() else vectors_UD[known]
        return vectors_UD

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Values of each score over the users who have it."""
        long = self.users.select("names", "values").explode("names", "values").drop_nulls()
        parts = long.partition_by("names", maintain_order=True, as_dict=True)
        return {str(key[0]): part["values"].cast(pl.Float64).to_numpy() for key, part in parts.items()}

    def timelines(self, vocabulary: Vocabulary) -> Timelines:
        """Histories of the users in their order, read with a vocabulary."""
        found = read_timelines(self.history, vocabulary, self.buckets)
        place = pl.DataFrame({"user_id": pl.Series(found.user_ids)}).with_row_index("row")
        rows = self.users.select("user_id").join(place, on="user_id", how="left", maintain_order="left")["row"]
        return found.take(rows.cast(pl.Int64).to_numpy())


def read_published(
    parent: Release, history: Folder, target: Folder, buckets: Sequence[int], *, most: int
) -> tuple[Published, Published]:
    """The parent's and the build's profiles of the users of both, at most so many, by digest."""
    new = _profiles(target / "profiles", buckets)
    if new.height > 2 * most:  # of whom the parent knows nobody knows how many
        new = _drawn(new, 2 * most)
    old = _profiles(parent.profiles, _parent_buckets(parent, history, buckets, new["user_id"]))
    both = _drawn(new.select("user_id").join(old.select("user_id"), on="user_id", how="semi"), most)
    sides = [both.join(side, on="user_id", how="left", maintain_order="left") for side in (old, new)]
    dims = [int(side["embedding"].list.len().fill_null(0).to_numpy().max(initial=1)) for side in sides]
    return (
        Published(sides[0], dims[0], history, tuple(buckets)),
        Published(sides[1], dims[1], history, tuple(buckets)),
    )


def compare_audiences(
    workspace: Workspace, parent: Release, history: Folder, target: Folder, old: Published, new: Published
) -> tuple[dict[str, MembershipChurn], dict[str, str]]:
    """Saved audiences by name: who is in by either release's profiles; and why some could not be compared."""
    definitions = AudienceCatalogue(workspace.audiences).all()
    if not definitions:
        return {}, {}
    sides = (
        _Side.of(parent.folder, workspace.history(parent.manifest.snapshot)),
        _Side.of(target, history),
    )
    compared, problems = {}, {}
    for definition in definitions:
        try:
            before, after = (
                side.members(definition.rule, published) for side, published in zip(sides, (old, new), strict=True)
            )
        except (InvalidRule, NotFound) as error:
            problems[definition.name] = str(error)
            continue
        compared[definition.name] = membership_churn(before, after)
    return compared, problems


@dataclass(frozen=True)
class _Side:
    """One release as rules read it."""

    folder: Folder
    vocabulary: Vocabulary
    users: ReleaseUsers

    @classmethod
    def of(cls, folder: Folder, history: Folder) -> _Side:
        vocabulary = Vocabulary.load(folder / "items")
        return cls(folder, vocabulary, ReleaseUsers(folder / "profiles", history, vocabulary.actions))

    def members(self, text: str, published: Published) -> NDArray[np.bool_]:
        """Whether each user is in [U]; InvalidRule if this release cannot tell."""
        names = [name for head in load_heads(self.folder / "scores") for name in head.fallbacks]
        rule = Rule.parse(text, schema_of(self.vocabulary, names))
        fields, parts = fields_of_rules([rule]), []
        asked = published.users.select("user_id")
        num_buckets = len(buckets_of(self.users.history))
        for bucket in np.unique(bucket_of(asked["user_id"], num_buckets)).tolist():
            profiles, timelines = self.users.read(bucket, fields)
            held = evaluate([rule], profiles, timelines, self.vocabulary.actions).to_series(0)
            ids = pl.Series("user_id", profiles.column("user_id").to_pylist(), dtype=pl.String)
            parts.append(pl.DataFrame([ids, held.alias("held")]))
        found = asked.join(pl.concat(parts), on="user_id", how="left", maintain_order="left")
        return found["held"].fill_null(False).to_numpy()


def _parent_buckets(parent: Release, history: Folder, buckets: Sequence[int], users: pl.Series) -> Iterable[int]:
    """Buckets of the parent's profiles that hold the users."""
    held = {int(name.split("=")[1].split("/")[0]) for name in parent.profiles.files() if name.startswith("bucket=")}
    snapshot = parent.workspace.history(parent.manifest.snapshot)
    num_buckets = len(buckets_of(snapshot)) if snapshot.is_published() else max(held, default=0) + 1
    if num_buckets == len(buckets_of(history)):
        return sorted(held & set(buckets))
    return sorted(held & set(np.unique(bucket_of(users, num_buckets)).tolist()))


def _profiles(profiles: Folder, buckets: Iterable[int]) -> pl.DataFrame:
    nobody = pl.DataFrame(PROFILE_SCHEMA.empty_table().select(["user_id", "segments", "scores", "embedding"]))
    parts: list[Any] = [pl.DataFrame(_read(profile_file(profiles, bucket))) for bucket in buckets]
    frame: pl.DataFrame = pl.concat(parts) if parts else nobody
    return frame.select(
        "user_id",
        pl.col("segments").struct.field("lifecycle"),
        pl.col("segments").struct.field("cluster_id"),
        pl.col("scores").list.eval(pl.element().struct.field("name")).alias("names"),
        pl.col("scores").list.eval(pl.element().struct.field("value")).alias("values"),
        "embedding",
    )


def _read(file: Folder) -> pa.Table:
    with file.open() as opened:  # ParquetFile reads the parts of structs that are asked for, drivers are most bytes
        return pq.ParquetFile(opened).read(_COLUMNS)


def _drawn(users: pl.DataFrame, most: int) -> pl.DataFrame:
    """The users with the lowest digests: the same ones in every build."""
    draws = unit_interval(users["user_id"], SAMPLE_KEY)
    return users[np.sort(np.argsort(draws, kind="stable")[:most])]
