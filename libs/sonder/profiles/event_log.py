"""What every log of online events promises, and which one an installation has.

With an embedded store the events lie beside it, on the node's own disk (`profiles.online_log`). With a networked store
there are gateways on many nodes: their events lie on that server too (`profiles.redis_log`), so that each counts once
whichever gateway took it, any gateway knows them at once, and a node that dies takes none with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sonder.core.workspace import Workspace
from sonder.events.online import OnlineEvent


class Appended(NamedTuple):
    """What became of a batch."""

    accepted: int
    duplicates: int


class EventLog(Protocol):
    """Durable before they are accepted, each event once, read in their order."""

    def append_all(self, batches: Sequence[Sequence[OnlineEvent]]) -> list[Appended]:
        """Write what is new, all of it or nothing, on disk when this returns; an id that is known changes nothing."""

    def after(self, sequence: int, limit: int) -> list[tuple[int, OnlineEvent]]:
        """The next events in their order, `limit` at most."""

    def of_user(self, user_id: str, after: int = 0) -> list[OnlineEvent]:
        """The user's events past a sequence number, in their order."""

    def last(self) -> int:
        """Sequence number of the newest event that was ever accepted; 0, or where counting began, without one."""

    def erase(self, user_id: str) -> int:
        """Remove a user's events and what remembers them -> how many. Their numbers are never given again."""

    def close(self) -> None: ...


def open_event_log(workspace: Workspace, url: str | None) -> EventLog:
    """The log of an installation; `url`: of its networked store, None for an embedded one."""
    if url is None:
        from sonder.profiles.online_log import OnlineLog

        return OnlineLog(workspace.online_log)
    from sonder.profiles.redis_log import RedisLog

    return RedisLog(url)
