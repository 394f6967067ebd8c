"""A published release and stages -> an engine: what the gateway's constructor does, without Ray."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from services.gateway.audiences import AudiencePreviews
from services.gateway.engine import Engine
from services.gateway.erasing import Erasures
from services.gateway.memberships import AudienceMemberships
from services.gateway.observing import observed_store
from services.gateway.release_info import PopularItem, ReleaseInfo
from services.gateway.stages import FoundItem, Stages
from sonder.encoder.artefact import load_popularity
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.event_log import EventLog, open_event_log
from sonder.profiles.recent_events import EventPacker
from sonder.profiles.record import iso_time
from sonder.profiles.store import ProfileStore
from sonder.releases.artefacts import Release
from sonder.retrieval.popular import popular_order


def open_engine(
    release: Release,
    stages: Stages,
    *,
    store_url: str | None = None,
    store: ProfileStore | None = None,
    log: EventLog | None = None,
) -> Engine:
    """Put an engine in front of the release's store, which is loaded where there is none yet.

    A process that has the store or the online log open already hands them over (LMDB's rule).
    """
    store = store or release.open_store(store_url, writable=True)  # an erasure writes
    num_profiles = store.metadata().num_profiles
    info = describe(release, num_profiles=num_profiles)
    return Engine(
        info,
        observed_store(store),
        stages,
        AudiencePreviews(release, num_profiles=num_profiles),
        AudienceMemberships(release),
        open_packer(release, store),
        log or open_event_log(release.workspace, store_url),
        Erasures(
            release.workspace.erasures,
            release.workspace.log_copies,
            release.workspace.experiments,
        ),
    )


def open_packer(release: Release, store: ProfileStore) -> EventPacker:
    """What turns online events into the timelines of a release."""
    return EventPacker(Vocabulary.load(release.items), max_events=store.metadata().max_events)


def describe(release: Release, *, num_profiles: int) -> ReleaseInfo:
    """What the engine answers of a release without asking a stage."""
    manifest = release.manifest
    vocabulary = Vocabulary.load(release.items)
    order = popular_order(load_popularity(release.items), vocabulary.item_ids)
    items = vocabulary.items.take(order)
    columns = [items.column(name).to_pylist() for name in (Col.ITEM_ID, Col.TITLE, Col.CATEGORY)]
    first_seen = pc.cast(items.column(Col.FIRST_SEEN), pa.int64()).fill_null(manifest.as_of_us).to_numpy()
    ages_days = (manifest.as_of_us - first_seen) / MICROSECONDS_PER_DAY
    rows = zip(order.tolist(), *columns, ages_days.tolist(), strict=True)
    popular = tuple(
        PopularItem(index, FoundItem(item_id, title, category, None), age_days)
        for index, item_id, title, category, age_days in rows
    )
    summary = {
        "release": manifest.id,
        "created_at": manifest.created_at,
        "as_of": iso_time(manifest.as_of_us),
        "parent": manifest.parent,
        "code_version": manifest.code_version,
        "snapshot": manifest.snapshot,
        "config_digest": manifest.config_digest,
        "num_profiles": num_profiles,
        "metrics": manifest.metrics,
    }
    return ReleaseInfo(
        id=manifest.id,
        created_at_us=manifest.created_at_us,
        as_of_us=manifest.as_of_us,
        summary=summary,
        base_rates=release.base_rates(),
        popular=popular,
        clusters=release.load_clusters(),
    )
