"""What the gateway knows of the release that it serves, beside its store and its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from services.gateway.stages import FoundItem, Wish
from sonder.profiles.packing import unpack_timelines
from sonder.profiles.record import cold_profile, to_json_records
from sonder.profiles.store import StoredProfile
from sonder.segments.clusters import Clusters


@dataclass(frozen=True)
class PopularItem:
    """An item that anybody may be shown."""

    index: int
    item: FoundItem
    age_days: float  # since its first event, at the release's as_of; 0 for one that nobody met yet

    def is_wished(self, wish: Wish) -> bool:
        category = self.item.category or ""
        is_within = wish.category is None or f"{category}/".startswith(f"{wish.category}/")
        return is_within and (wish.max_age_days is None or self.age_days <= wish.max_age_days)


@dataclass(frozen=True)
class ReleaseInfo:
    """What the gateway knows of the release that it serves."""

    id: str
    created_at_us: int
    as_of_us: int
    summary: dict[str, Any]  # answered by /v1/release
    base_rates: Mapping[str, float]  # of each score, what a cold user gets
    popular: tuple[PopularItem, ...]  # most popular first
    clusters: Clusters | None = None  # None: a release without behaviour clusters

    def cold(self, user_id: str) -> StoredProfile:
        """The declared profile of a user whom the release does not know."""
        body = b'{"user_id":%b%b' % (orjson.dumps(user_id), self._cold_tail)
        return StoredProfile(self.created_at_us, body, b"", b"")

    @cached_property
    def _cold_tail(self) -> bytes:
        nobody = cold_profile("", base_rates=self.base_rates, as_of_us=self.as_of_us)
        return to_json_records(nobody, computed_at_us=self.created_at_us)[0].removeprefix(b'{"user_id":""')

    def popular_for(self, timeline: bytes, k: int, wish: Wish) -> list[FoundItem]:
        """The k most popular items as wished that are not in a packed timeline."""
        seen = set(unpack_timelines(["user"], [timeline]).items.tolist())
        wanted = [one for one in self.popular if one.index not in seen and one.is_wished(wish)]
        return [one.item for one in wanted[:k]]
