"""Signed tokens (JWT, RFC 7519) of an identity provider: who may ask the gateway for what, without a key of ours.

A token passes if it is signed by a key of the provider's JSON Web Key Set (RFC 7517) with an asymmetric algorithm, is
for our audience, from our issuer, and neither early nor expired. PyJWT checks it; what stands here is where the keys
come from. The set is read again every REFRESH_S, and at once for an unknown key id, but no more often than every
LEAST_BETWEEN_S: a flood of made-up ids is no flood at the provider. While the provider is away the keys that are known
go on counting. A verified token is remembered by its digest for CACHED_S at most, so a key that the provider withdrew
is refused within REFRESH_S + CACHED_S.
Claims: `scope` (words) or `scp` (words or a list) hold read, write or admin, perhaps behind a prefix; `sonder_fields`
limits the token to parts of a profile, as keys are limited; `sub` names the caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson

from sonder.core.config import TokensConfig
from sonder.core.errors import NotReady
from sonder.core.keys import SCOPES, Caller

logger = logging.getLogger("sonder")
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)  # none of them can be made with what is public
MAX_TOKEN_BYTES = 8 << 10
MAX_SET_BYTES = 1 << 20
REFRESH_S = 300.0
LEAST_BETWEEN_S = 10.0
CACHED_S = 60.0
MAX_CACHED = 10_000
LEEWAY_S = 30.0  # clocks differ
FETCH_TIMEOUT_S = 5.0
FIELDS_CLAIM = "sonder_fields"


class Refused(Exception):
    """The token does not count; the message says why, without what is in it."""


class Tokens:
    """The keys of one provider and the tokens that they verified lately. Of one event loop."""

    def __init__(self, config: TokensConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched, self._tried = -math.inf, -math.inf
        self._fetching = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._callers: dict[bytes, tuple[Caller, float]] = {}  # digest of a token -> who, until (by the wall clock)

    async def caller(self, token: str) -> Caller:
        """Who presents a token. Refused where it does not count, NotReady where no keys could be had yet."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused(f"The token has more than {MAX_TOKEN_BYTES} bytes")
        digest, now = hashlib.sha256(token.encode()).digest(), time.time()
        known = self._callers.get(digest)
        if known is not None and now < known[1]:
            return known[0]
        claims = self._claims(token, await self._key(token))
        caller = self._caller(claims)
        if len(self._callers) >= MAX_CACHED:
            self._callers.clear()
        self._callers[digest] = caller, min(float(claims["exp"]) + LEEWAY_S, now + CACHED_S)
        return caller

    async def _key(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Refused("The token is no JWT") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise Refused(f"The token is signed by {str(algorithm)[:16]!r}, expected one of {', '.join(ALGORITHMS)}")
        if not self._has(kid):
            await self._fetch(kid)
        elif self._clock() - self._fetched > REFRESH_S and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._fetch(kid))  # nobody waits: the known key counts meanwhile
        if not self._keys:
            raise NotReady("The keys of the tokens' issuer could not be read", do="Try again shortly.")
        if not self._has(kid):
            raise Refused("The token's key is none of the issuer's")
        return next(iter(self._keys.values())) if kid is None else self._keys[kid]

    def _has(self, kid: str | None) -> bool:
        return len(self._keys) == 1 if kid is None else kid in self._keys

    async def _fetch(self, kid: str | None) -> None:
        """Read the set, unless it was tried a moment ago; who waited for another's try looks at what that found."""
        async with self._fetching:
            now = self._clock()
            is_wanted = now - self._fetched > REFRESH_S or not self._has(kid)
            if not is_wanted or now - self._tried < LEAST_BETWEEN_S:
                return
            self._tried = now
            try:
                found = read_keys_of(await self._content())
            except (OSError, httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
                logger.warning("The issuer's keys could not be read (%s); known ones count on", type(error).__name__)
                return
            self._keys, self._fetched = found, now

    async def _content(self) -> bytes:
        where = self._config.jwks
        if not where.startswith(("http://", "https://")):
            return await asyncio.to_thread(Path(where).read_bytes)
        content = b""
        async with (
            httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client,
            client.stream("GET", where) as answer,
        ):
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > MAX_SET_BYTES:
                    raise ValueError("too large for a key set")
        return content

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Refused(_reason(error)) from None

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        prefix, name = self._config.scope_prefix, str(claims["sub"])[:128]
        words = _words(claims.get("scope", claims.get("scp")))
        scopes = tuple(scope for scope in SCOPES if f"{prefix}{scope}" in words)
        limits = claims.get(FIELDS_CLAIM)  # one that is there limits, even if it cannot be read
        return Caller(name, f"sub:{name}", scopes, None if limits is None else _words(limits), self._config.rate)


def read_keys_of(content: bytes) -> dict[str | None, jwt.PyJWK]:
    """The keys of a set that verify signatures, by their id. ValueError or PyJWTError where it is no key set."""
    found = jwt.PyJWKSet.from_dict(orjson.loads(content))
    usable = [key for key in found.keys if key.key_type != "oct" and key.public_key_use in (None, "sig")]
    if not usable:
        raise ValueError("no key that verifies signatures")
    return {key.key_id: key for key in usable}


def _words(claim: Any) -> tuple[str, ...]:
    """Of a claim that is a text of words or a list of them; none of anything else."""
    words: Sequence[Any] = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    return tuple(word for word in words if isinstance(word, str))


def _reason(error: jwt.PyJWTError) -> str:
    told: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
        (jwt.ExpiredSignatureError, "The token has expired"),
        (jwt.ImmatureSignatureError, "The token does not count yet"),
        (jwt.InvalidAudienceError, "The token is for another audience"),
        (jwt.InvalidIssuerError, "The token is of another issuer"),
        (jwt.MissingRequiredClaimError, f"The token lacks a claim: {error}"),
        (jwt.InvalidSignatureError, "The token's signature is wrong"),
    )
    return next((text for kind, text in told if isinstance(error, kind)), "The token is not valid")
