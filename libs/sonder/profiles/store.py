"""What every online store promises, and the one packed record that it holds per user.

A record is a 28-byte header (fingerprint 8, computed_at int64, three lengths uint32), the ready JSON body, the packed
embedding (float32) and the packed timeline (profiles.packing). Its fingerprint is derived from the release, the width
of the embedding and the version of this layout: a record of another release is an ArtefactMismatch, never an answer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from sonder.core.errors import ArtefactMismatch, InvalidRequest, NotReady

LAYOUT_VERSION = 2
_HEADER = struct.Struct("<8sqIII")
_LONGEST_PLAIN_KEY = 510  # bytes: LMDB's limit of 511 less the prefix


class StoredProfile(NamedTuple):
    """One user's record, unpacked."""

    computed_at_us: int
    body: bytes  # profiles.record.to_json_records
    embedding: bytes  # little-endian float32 [D]; empty for a cold user
    timeline: bytes  # profiles.packing, the newest events


@dataclass(frozen=True)
class StoreMetadata:
    """What a store holds; written last, so a store without it was never finished."""

    release: str
    as_of_us: int
    dim: int  # width of the embeddings
    max_events: int  # newest events kept per user
    num_profiles: int

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that every record of this release and layout carries."""
        identity = orjson.dumps([LAYOUT_VERSION, self.release, self.dim])
        return hashlib.blake2b(identity, digest_size=8).digest()

    def to_json(self) -> bytes:
        return orjson.dumps({"layout": LAYOUT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, content: bytes) -> StoreMetadata:
        fields: dict[str, Any] = orjson.loads(content)
        layout = fields.pop("layout", None)
        if layout != LAYOUT_VERSION:
            raise ArtefactMismatch(
                f"An online store of layout {layout}",
                expected=f"layout {LAYOUT_VERSION}",
                do="Remove the store; serving loads it again from the release.",
            )
        return cls(**fields)


class Progress(NamedTuple):
    """How far a store has followed the online log."""

    sequence: int  # of the newest event that its profiles hold
    as_of_us: int  # the newest time that they were computed for


def progress_moved(found: Progress, expected: Progress) -> NotReady:
    """Another refresh was faster."""
    return NotReady(
        f"The online store has followed the log to {found.sequence}",
        expected=f"{expected.sequence}, where this refresh began",
        do="Nothing: it reads the records again and goes on from there.",
    )


class ProfileStore(Protocol):
    """Read by the gateway in its own process; written by the loader and by refreshes.

    Every answer is of the store's release: a record of another one is an ArtefactMismatch, a store that has lost the
    release is NotReady, one that cannot be reached StageUnavailable; none of it is ever answered as "no such user".
    """

    def get(self, user_id: str) -> StoredProfile | None: ...

    def batch_get(self, user_ids: Sequence[str]) -> list[StoredProfile | None]:
        """In the order asked for, from one consistent view."""

    def put_many(self, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        """Write or replace records, all or none; how many."""

    def put_refreshed(
        self, profiles: Iterable[tuple[str, StoredProfile]], progress: Progress, *, after: Progress | None = None
    ) -> None:
        """Write refreshed records and how far they are, all or none.

        `after`: only if the store's progress is still this one, else NotReady: what was computed from the records of
        that moment would undo what another refresh, on another node, has written since.
        """

    def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Packed records as they are held, of whatever release and however broken; for `put_unchanged`."""

    def put_unchanged(self, changes: Sequence[tuple[str, bytes | None, StoredProfile]]) -> list[str]:
        """Write each record that is still held as it was read (None: absent) -> users whose record is another now.

        Whoever else writes meanwhile, a refresh say, is never overwritten. All in one transaction.
        """

    def progress(self) -> Progress:
        """Of the last refresh; sequence 0 and the release's own as_of where there was none."""

    def delete(self, user_id: str) -> bool:
        """Erase a user's record; whether there was one. No read after this call sees it.

        A store that is loaded again from the release has the user again, and so has one that a refresh under way
        writes to: who erases a user takes it out of the log, and out of refreshes, first.
        """

    def metadata(self) -> StoreMetadata:
        """As it was loaded."""

    def num_profiles(self) -> int:
        """Records held now."""

    def size_bytes(self) -> int:
        """Bytes that the store takes up now, on disk or in the server's memory."""

    def close(self) -> None: ...


class LoadingStore(Protocol):
    """A store on its way: parts in any order, each remembered once it is in, and the metadata at the end."""

    def loaded(self, name: str) -> int | None:
        """How many profiles of this part are in, None if it was not loaded."""

    def put_part(self, name: str, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        """Write one part and then remember that it is in; how many profiles it has."""

    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata, which makes the store openable."""

    def size_bytes(self) -> int:
        """Bytes that the store takes up now."""


def key_of(user_id: str) -> bytes:
    """Key of a user: the id itself, or its 256-bit digest where a store's keys could not hold it."""
    try:
        raw = user_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("A user id that is not Unicode text", expected="UTF-8 without lone surrogates") from error
    if len(raw) <= _LONGEST_PLAIN_KEY:
        return b"u" + raw
    return b"h" + hashlib.blake2b(raw, digest_size=32).digest()


def pack(profile: StoredProfile, fingerprint: bytes) -> bytes:
    """Record of a profile."""
    computed_at_us, body, embedding, timeline = profile
    header = _HEADER.pack(fingerprint, computed_at_us, len(body), len(embedding), len(timeline))
    return b"".join((header, body, embedding, timeline))


def unpack(record: bytes, fingerprint: bytes) -> StoredProfile:
    """The inverse of `pack`; ArtefactMismatch if the record belongs to another release or is cut."""
    if len(record) < _HEADER.size:
        raise _broken(f"A record of {len(record)} bytes")
    found, computed_at_us, body_size, embedding_size, timeline_size = _HEADER.unpack_from(record)
    if found != fingerprint:
        raise _broken(f"A record with fingerprint {found.hex()}", expected=f"{fingerprint.hex()}, of this release")
    body_end = _HEADER.size + body_size
    embedding_end = body_end + embedding_size
    if len(record) != embedding_end + timeline_size:
        raise _broken(f"A record of {len(record)} bytes", expected=f"{embedding_end + timeline_size} bytes")
    return StoredProfile(
        computed_at_us, record[_HEADER.size : body_end], record[body_end:embedding_end], record[embedding_end:]
    )


def _broken(found: str, expected: str = "a whole record of this release") -> ArtefactMismatch:
    return ArtefactMismatch(
        found + " in the online store",
        expected=expected,
        do="Remove the store; serving loads it again from the release.",
    )
