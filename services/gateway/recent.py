"""What is known of a user at this moment: the stored record, and the accepted events that it does not hold yet.

So a fresh profile and the items that are not recommended again count an event from the moment it was accepted, whether
or not the refresh has come to it. An event before the release's own as_of stays in the log for the next build: the
release has it, or was made without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sonder.events.online import OnlineEvent
from sonder.profiles.event_log import EventLog
from sonder.profiles.recent_events import EventPacker
from sonder.profiles.store import ProfileStore, StoredProfile


class Current(NamedTuple):
    """A user's record with the timeline of this moment."""

    profile: StoredProfile  # the cold one where nothing was stored
    as_of_us: int  # after every event in it
    is_known: bool  # stored, or with events that wait


class RecentEvents:
    """One release's store beside the online log."""

    def __init__(
        self,
        store: ProfileStore,
        log: EventLog | None,
        packer: EventPacker,
        cold: Callable[[str], StoredProfile],
        *,
        release_as_of_us: int,
    ) -> None:
        self.store, self.log = store, log
        self._packer, self._cold, self._release_as_of_us = packer, cold, release_as_of_us

    def current(self, user_id: str) -> Current:
        """The record, with the events in its timeline that were accepted since."""
        # The progress is read first: a refresh in between repeats an event in the worst case and loses none.
        progress = self.store.progress()
        waiting = [] if self.log is None else self.log.of_user(user_id, after=progress.sequence)
        stored = self.store.get(user_id)
        wanted = self.applicable(waiting)
        profile = stored or self._cold(user_id)
        if wanted:
            profile = profile._replace(timeline=self._packer.merged(profile.timeline, wanted))
        return Current(profile, self.as_of_us(progress.as_of_us, wanted), stored is not None or bool(wanted))

    def merged(self, user_ids: Sequence[str], events: Iterable[OnlineEvent]) -> dict[str, StoredProfile]:
        """Records of these users with their events among these, which the stored ones do not hold."""
        of_user: dict[str, list[OnlineEvent]] = {user_id: [] for user_id in user_ids}
        for event in events:
            of_user[event.user_id].append(event)
        found = {}
        for user_id, stored in zip(user_ids, self.store.batch_get(user_ids), strict=True):
            profile = stored or self._cold(user_id)
            timeline = self._packer.merged(profile.timeline, of_user[user_id])
            found[user_id] = profile._replace(timeline=timeline)
        return found

    def applicable(self, events: Iterable[OnlineEvent]) -> list[OnlineEvent]:
        """Those that the release was made without."""
        return [event for event in events if event.time_us >= self._release_as_of_us]

    def as_of_us(self, reached_us: int, events: Iterable[OnlineEvent]) -> int:
        """A time after all of these and not before the one reached."""
        return max(reached_us, self._release_as_of_us, *(event.time_us + 1 for event in events), 0)
