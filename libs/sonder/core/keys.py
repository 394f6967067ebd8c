"""API keys: who may ask the gateway for what. One JSON file of the workspace, in which no key can be read.

A key is `sk_<id>_<secret>` with 256 random bits of secret, shown once when it is made. The file keeps its SHA-256
digest: a slow password hash guards secrets that people choose, and would cost every request milliseconds; 256 random
bits cannot be guessed at any speed. Digests are compared in constant time.
Scopes: `read` (profiles, recommendations, audiences), `write` (events), `admin` (erasure; everything).
Limits: rates are counted by each gateway on its own.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder

PREFIX = "sk_"
SCOPES = ("read", "write", "admin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Who asks the gateway, and what it may."""

    name: str
    id: str  # of whom a rate is counted
    scopes: tuple[str, ...]
    fields: tuple[str, ...] | None  # the only parts of a profile that it may read; None: all
    rate: float | None  # requests a second, with as many at once; None: unlimited

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True)
class Key(Caller):
    """What the file says of one key."""

    digest: str  # SHA-256 of the whole key, hexadecimal
    created_at: str


def create_key(
    file: Folder,
    name: str,
    *,
    scopes: Sequence[str],
    fields: Sequence[str] | None = None,
    rate: float | None = None,
) -> str:
    """Add a key to the file -> the key itself, which is kept nowhere."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"A key named {name!r}", expected="1 to 64 letters, digits, dots, dashes and underscores")
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidRequest(
            f"Scope {unknown[0]!r}" if unknown else "No scope", expected=f"some of {', '.join(SCOPES)}"
        )
    if rate is not None and rate <= 0:
        raise InvalidRequest(f"A rate of {rate}", expected="requests a second, above 0")
    key_id = secrets.token_hex(4)
    secret = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    made = Key(
        name,
        key_id,
        tuple(scopes),
        None if fields is None else tuple(fields),
        rate,
        digest_of(secret),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )

    def added(known: list[Key]) -> list[Key]:
        if any(key.name == name for key in known):
            raise InvalidRequest(f"There is a key {name!r} already", do="Revoke it first, or take another name.")
        return [*known, made]

    _change(file, added)
    return secret


def revoke_key(file: Folder, name: str) -> None:
    """Remove a key; gateways refuse it within seconds. NotFound where there is none of that name."""

    def kept(known: list[Key]) -> list[Key]:
        left = [key for key in known if key.name != name]
        if len(left) == len(known):
            raise NotFound(f"No key {name!r}", do="`sonder keys list` names them.")
        return left

    _change(file, kept)


def read_keys(file: Folder) -> dict[str, Key]:
    """Every key by its id; empty without a file."""
    try:
        return {key.id: key for key in _keys(file.read_json())}
    except NotFound:
        return {}


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(keys: dict[str, Key], presented: str) -> Key | None:
    """The key that was presented, None where it is none of these."""
    parts = presented.split("_", 2)
    key = keys.get(parts[1]) if len(parts) == 3 else None
    # The digest is compared where no key has the id too, so that ids cannot be told from the time of an answer.
    is_right = hmac.compare_digest(digest_of(presented), key.digest if key is not None else "0" * 64)
    return key if is_right else None


def _key(entry: dict[str, Any]) -> Key:
    fields = entry["fields"]
    return Key(**{**entry, "scopes": tuple(entry["scopes"]), "fields": None if fields is None else tuple(fields)})


def _keys(content: dict[str, Any] | None) -> list[Key]:
    return [] if content is None else [_key(entry) for entry in content["keys"]]


def _change(file: Folder, change: Callable[[list[Key]], list[Key]]) -> None:
    """Replace the keys by what follows from them; of two changes at once neither is lost."""
    file.update_json(lambda found: {"keys": [asdict(key) for key in change(_keys(found))]})
    if file.is_local:
        Path(file.path).chmod(stat.S_IRUSR | stat.S_IWUSR)
