"""The audiences of a user in answers: the memberships of the last refresh, or the rules on a fresh profile.

A thread looks at the index of the workspace's audiences every few seconds. What it names and is not open yet is opened,
loaded first where no refresh on this machine has done that; then one assignment replaces what reads look at. So a save
and a refresh show up without a restart and a read waits for neither: it is one get in this process.
What cannot be opened leaves what was open before in place, and each membership says of when it is; with nothing open
the answer has none and is degraded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from sonder.core.errors import SonderError
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_fields import reads_history, schema_of
from sonder.profiles.audience_values import field_values
from sonder.profiles.membership_store import MembershipStore, ensure_memberships
from sonder.profiles.memberships import Membership, SavedRules
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.rules.rule import Rule
from sonder.segments.rules.schema import RuleSchema

logger = logging.getLogger("sonder")
LOOK_EVERY_S = 2.0
Missing = dict[str, Any]  # stage, reason, instead


@dataclass(frozen=True)
class Audiences:
    """What an answer says; `found` None where nothing could be read."""

    found: list[Membership] | None
    degraded: tuple[Missing, ...] = ()

    def to_json(self) -> bytes:
        if not self.found:
            return b"null" if self.found is None else b"[]"  # most users are in none
        return orjson.dumps([membership._asdict() for membership in self.found])


@dataclass(frozen=True)
class _Opened:
    """One state of the index."""

    index: AudienceIndex
    store: MembershipStore | None  # None: nobody was counted into any audience yet
    rules: SavedRules


class AudienceMemberships:
    """Memberships beside one release."""

    def __init__(self, release: Release, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._release, self._look_every_s = release, look_every_s
        self._opened: _Opened | None = None
        self._retired: MembershipStore | None = None
        self._looking, self._is_closed = threading.Lock(), threading.Event()
        self._look_safely()
        self._thread = threading.Thread(target=self._keep_looking, name="audience-memberships", daemon=True)
        self._thread.start()

    def stored(self, user_ids: Sequence[str]) -> list[Audiences]:
        """As the last refresh counted these users, in their order."""
        opened = self._opened
        if opened is None:
            missing = {"stage": "audiences", "reason": "no membership could be opened", "instead": "none"}
            return [Audiences(None, (missing,)) for _ in user_ids]
        if opened.store is None:
            return [Audiences([]) for _ in user_ids]
        return [Audiences(found) for found in opened.store.batch_get(user_ids)]

    def fresh(self, user_id: str, body: bytes, timeline: bytes) -> Audiences:
        """By the rules as they are now, on a profile that was just computed and the history it was computed from."""
        opened, (stored,) = self._opened, self.stored([user_id])
        if opened is None or stored.found is None or not opened.index.audiences:
            return stored
        history = unpack_timelines([user_id], [timeline])
        rules = opened.rules
        found = rules.memberships(orjson.loads(body), history, stored.found)
        problems = tuple(
            {
                "stage": "audiences",
                "reason": f"release {self._release.id} cannot evaluate audience {name}: {problem}",
                "instead": "its membership of the last refresh",
            }
            for name, problem in rules.problems.items()
        )
        return Audiences(found, problems)

    def rule(self, text: str) -> Callable[[str, bytes, bytes], bool]:
        """Whether a rule holds for a user by its profile and timeline; what is unknown does not.

        Reads files when it is made: in a thread. InvalidRule where the release does not have what it names.
        """
        schema, actions = self._names
        rule = Rule.parse(text, schema)
        needs_history = reads_history(rule.fields)

        def holds(user_id: str, body: bytes, timeline: bytes) -> bool:
            history = unpack_timelines([user_id], [timeline]) if needs_history else None
            return rule.holds(field_values(rule.fields, orjson.loads(body), history, actions)) is True

        return holds

    def look(self) -> None:
        """Open what the index names now, if it is not open already."""
        with self._looking:
            self._look()

    def close(self) -> None:
        """Stop looking and close the stores; nothing is answered afterwards."""
        self._is_closed.set()
        self._thread.join()
        for store in (self._retired, None if self._opened is None else self._opened.store):
            if store is not None:
                store.close()
        self._opened = None

    def _look(self) -> None:
        workspace = self._release.workspace
        index, before = AudienceIndex.read(workspace.audiences), self._opened
        if before is not None and index == before.index:
            return
        store = None if before is None else before.store
        if before is None or index.members_digest != before.index.members_digest:
            store = None
            if index.counted:
                store = MembershipStore.open(
                    ensure_memberships(workspace.membership_stores, workspace.audiences, index)
                )
            # A read may hold the one of before for some microseconds yet; that one is closed at the next change.
            if self._retired is not None:
                self._retired.close()
            self._retired = None if before is None else before.store
        self._opened = _Opened(index, store, self._rules(index))

    def _keep_looking(self) -> None:
        while not self._is_closed.wait(self._look_every_s):
            self._look_safely()

    def _look_safely(self) -> None:
        try:
            self.look()
        except Exception as error:  # whatever a shared file system or a damaged file does: the reads go on
            kind = error.found if isinstance(error, SonderError) else f"{type(error).__name__}: {error}"
            logger.warning("audience memberships could not be opened: %s", kind)

    def _rules(self, index: AudienceIndex) -> SavedRules:
        if not index.audiences:
            return SavedRules({}, {}, ())
        schema, actions = self._names
        return SavedRules.of(index, schema, actions)

    @cached_property
    def _names(self) -> tuple[RuleSchema, tuple[str, ...]]:
        """What rules may name in this release; one thread at a time asks."""
        vocabulary = Vocabulary.load(self._release.items)
        return schema_of(vocabulary, self._release.base_rates()), tuple(vocabulary.actions)
