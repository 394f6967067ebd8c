"""One user's story, read from the served release and the history it was made from; terminal and report tell it.

Everything here was computed by the build, but the recommendations: nearest items to the user's vector, the ones of
the history left out, as the retrieval deployment ranks them.
What an attribute marked as sensitive says of the user is left out here already, so nobody who tells the story has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from sonder.core.errors import NotFound
from sonder.core.ids import bucket_of
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder, load_popularity
from sonder.events.contract import Col
from sonder.history.snapshot import buckets_of, find_user
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import profile_file
from sonder.releases.registry import Registry
from sonder.retrieval.exact import top_items

NUM_RECOMMENDATIONS = 10
TIMELINE_LENGTH = 12
NUM_LIKES, NUM_DISLIKES = 5, 3
SENSITIVE = "(sensitive)"  # in place of the value


@dataclass(frozen=True)
class Moment:
    """One event of the timeline."""

    time: datetime
    action: str
    item_id: str
    title: str | None
    category: str | None
    value: float | None


@dataclass(frozen=True)
class Recommendation:
    item_id: str
    title: str | None
    category: str | None
    score: float  # cosine similarity to the user's vector


@dataclass(frozen=True)
class Leaning:
    """An affinity that stands out: `share` of the next wanted actions, `lift` times the population's."""

    category: str
    share: float
    lift: float
    is_refused: bool  # hidden, cancelled, … more than wanted


@dataclass(frozen=True)
class Story:
    user_id: str
    release: str
    protocol: str
    profile: dict[str, Any]  # a row of PROFILE_SCHEMA, without the embedding and what the user table says
    likes: tuple[Leaning, ...]  # strongest first
    dislikes: tuple[Leaning, ...]
    attributes: tuple[tuple[str, str], ...]  # (name, value or SENSITIVE)
    consent: tuple[tuple[str, bool], ...]
    timeline: tuple[Moment, ...]  # newest last
    recommendations: tuple[Recommendation, ...]


def read_story(workspace: Workspace, user_id: str) -> Story:
    """The story of a user in the served release."""
    current = Registry(workspace).current()
    if current is None:
        raise NotFound(f"No release is served in {workspace.root}", do="Make one with `sonder build`")
    manifest = Registry(workspace).show(current.release)
    folder = workspace.release(manifest.id)
    return tell_story(
        folder,
        workspace.history(manifest.snapshot),
        user_id,
        release_id=manifest.id,
        protocol=manifest.config["evaluation"]["protocol"],
        sensitive=(manifest.config.get("users") or {}).get("sensitive", ()),
    )


def tell_story(
    release: Folder, snapshot: Folder, user_id: str, *, release_id: str, protocol: str, sensitive: Sequence[str]
) -> Story:
    """The story of a user from the files of a release, published or still staged."""
    vocabulary = Vocabulary.load(release / "items")
    history = find_user(snapshot, user_id)
    bucket = int(bucket_of(pl.Series([user_id]), len(buckets_of(snapshot)))[0])
    profile = _profile_of(release, bucket, user_id)
    vector = profile.pop("embedding")
    attributes, consent = (profile.pop(name, None) or () for name in ("attributes", "consent"))
    timelines = Timelines.from_history(history, vocabulary)
    return Story(
        user_id=user_id,
        release=release_id,
        protocol=protocol,
        profile=profile,
        likes=strongest(profile.get("affinities") or (), NUM_LIKES, is_liked=True),
        dislikes=strongest(profile.get("affinities") or (), NUM_DISLIKES, is_liked=False),
        attributes=told_attributes(attributes, sensitive),
        consent=tuple((pair["name"], pair["granted"]) for pair in consent),
        timeline=_newest(history, vocabulary),
        recommendations=() if vector is None else _recommend(release, np.asarray([vector], np.float32), timelines),
    )


def strongest(affinities: Sequence[Mapping[str, Any]], count: int, *, is_liked: bool) -> tuple[Leaning, ...]:
    """The strongest affinities of one sign over all levels; one that lies in, or holds, a stronger one is left out."""
    ranked = sorted(
        (entry for entry in affinities if (entry["strength"] > 0 if is_liked else entry["strength"] < 0)),
        key=lambda entry: (-abs(entry["strength"]), entry["category"]),
    )
    chosen: list[Mapping[str, Any]] = []
    for entry in ranked:
        path = f"{entry['category']}/"
        if len(chosen) < count and not any(
            path.startswith(f"{other['category']}/") or f"{other['category']}/".startswith(path) for other in chosen
        ):
            chosen.append(entry)
    return tuple(
        Leaning(entry["category"], entry["share"], entry["lift"], entry["against"] > entry["evidence"])
        for entry in chosen
    )


def told_attributes(attributes: Sequence[Mapping[str, str]], sensitive: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values, SENSITIVE in place of the value of a sensitive one."""
    return tuple((pair["name"], SENSITIVE if pair["name"] in sensitive else pair["value"]) for pair in attributes)


def _profile_of(release: Folder, bucket: int, user_id: str) -> dict[str, Any]:
    table = pl.from_arrow(profile_file(release / "profiles", bucket).read_table())
    assert isinstance(table, pl.DataFrame)
    rows = table.filter(pl.col(Col.USER_ID) == user_id).to_dicts()
    if not rows:
        raise NotFound(f"User {user_id!r} has a history but no profile in this release", do="Build the release again")
    return rows[0]


def _newest(history: Any, vocabulary: Vocabulary) -> tuple[Moment, ...]:
    frame = pl.from_arrow(history)
    assert isinstance(frame, pl.DataFrame)
    columns = [Col.TIMESTAMP, Col.ACTION, Col.ITEM_ID, Col.VALUE]
    events = frame.select(columns).explode(columns).tail(TIMELINE_LENGTH)
    items = pl.from_arrow(vocabulary.items.select([Col.ITEM_ID, Col.TITLE, Col.CATEGORY]))
    assert isinstance(items, pl.DataFrame)
    joined = events.join(items, on=Col.ITEM_ID, how="left", maintain_order="left")
    fields = [Col.TIMESTAMP, Col.ACTION, Col.ITEM_ID, Col.TITLE, Col.CATEGORY, Col.VALUE]
    return tuple(Moment(*row) for row in joined.select(fields).iter_rows())


def _recommend(release: Folder, vector_1D: Any, history: Timelines) -> tuple[Recommendation, ...]:
    encoder = load_encoder(release / "encoder").with_popularity(load_popularity(release / "items"))
    vocabulary = Vocabulary.load(release / "items")
    indices, scores = top_items(
        vector_1D,
        encoder.item_vectors,
        NUM_RECOMMENDATIONS,
        bias_I=encoder.item_bias,
        allowed_I=encoder.candidates,
        exclude=history,
    )
    found = [(int(index), float(score)) for index, score in zip(indices[0], scores[0], strict=True) if index >= 0]
    return tuple(_named(vocabulary, index, score) for index, score in found)


def _named(vocabulary: Vocabulary, index: int, score: float) -> Recommendation:
    row = vocabulary.items.slice(index, 1).to_pylist()[0]
    return Recommendation(row[Col.ITEM_ID], row[Col.TITLE], row[Col.CATEGORY], score)


def pick_users(profiles: Sequence[Folder], count: int) -> list[str]:
    """Users worth showing: several interests, a long history; the first by interests, events, then id."""
    frames = [pl.from_arrow(file.read_table(["user_id", "num_events", "interests", "is_cold"])) for file in profiles]
    users = pl.concat([frame for frame in frames if isinstance(frame, pl.DataFrame)])
    chosen = (
        users.filter(~pl.col("is_cold"))
        .with_columns(pl.col("interests").list.len().alias("breadth"))
        .filter(pl.col("num_events") <= pl.col("num_events").quantile(0.95))
        .sort(["breadth", "num_events", "user_id"], descending=[True, True, False])
    )
    spread = chosen.gather_every(max(1, chosen.height // (4 * count)))
    return spread.get_column("user_id").head(count).to_list()
