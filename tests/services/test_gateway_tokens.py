"""Signed tokens: what counts, whatever is forged does not, and the provider is asked no more than it must be."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.gateway.doors import Doors
from services.gateway.http import create_app
from services.gateway.tokens import LEAST_BETWEEN_S, MAX_TOKEN_BYTES, REFRESH_S, Refused, Tokens
from sonder.core.config import TokensConfig
from sonder.core.errors import NotReady
from sonder.core.storage import Folder

if TYPE_CHECKING:
    from conftest import Served

ISSUER, AUDIENCE = "https://login.example", "sonder"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def jwk(private: Any, kid: str) -> dict[str, Any]:
    is_rsa = isinstance(private, rsa.RSAPrivateKey)
    algorithm = jwt.algorithms.RSAAlgorithm if is_rsa else jwt.algorithms.ECAlgorithm
    made: dict[str, Any] = algorithm.to_jwk(private.public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig", "alg": "RS256" if is_rsa else "ES256"}


def token(private: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **claims: Any) -> str:
    now = time.time()
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ads", "exp": now + 300, "scope": "read", **claims}
    headers = None if kid is None else {"kid": kid}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, private, algorithm=algorithm, headers=headers)


class Provider:
    """An identity provider's key endpoint."""

    def __init__(self) -> None:
        self.keys, self.asked, self.status = [jwk(RSA, "one"), jwk(CURVE, "two")], 0, 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                content = json.dumps({"keys": outer.keys}).encode()
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def config(jwks: str, **changes: Any) -> TokensConfig:
    return TokensConfig(jwks=jwks, issuer=ISSUER, audience=AUDIENCE, **changes)


def who(tokens: Tokens, presented: str) -> Any:
    return asyncio.run(tokens.caller(presented))


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({}, ("read",)),
        ({"scope": "openid write  read"}, ("read", "write")),
        ({"scope": None, "scp": ["admin", "other", 5]}, ("admin",)),
        ({"scope": "reader administrator"}, ()),
        ({"scope": 7}, ()),
    ],
)
def test_a_token_may_what_its_scopes_say(provider: Provider, claims: dict[str, Any], scopes: tuple[str, ...]) -> None:
    caller = who(Tokens(config(provider.url)), token(**claims))
    assert (caller.name, caller.scopes, caller.fields) == ("ads", scopes, None)


def test_a_prefix_keeps_the_scopes_of_other_services_apart(provider: Provider) -> None:
    tokens = Tokens(config(provider.url, scope_prefix="sonder."))
    assert who(tokens, token(scope="read sonder.write")).scopes == ("write",)


@pytest.mark.parametrize(
    ("claim", "fields"), [("scores", ("scores",)), (["scores", 3], ("scores",)), ([], ()), (True, ()), ({"a": 1}, ())]
)
def test_a_claim_of_fields_limits_whatever_it_holds(provider: Provider, claim: Any, fields: tuple[str, ...]) -> None:
    assert who(Tokens(config(provider.url)), token(sonder_fields=claim)).fields == fields


def test_another_algorithm_of_the_provider_counts_too(provider: Provider) -> None:
    assert who(Tokens(config(provider.url)), token(CURVE, "two", "ES256")).name == "ads"


def _forged() -> dict[str, str]:
    good, now = token(), time.time()
    header, payload, signature = good.split(".")

    def encoded(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    start = f"{encoded({'alg': 'HS256', 'kid': 'one'})}.{payload}"
    digest = hmac.digest(public, start.encode(), "sha256")  # by hand: PyJWT refuses to make one
    confused = f"{start}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
    admin = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ads", "exp": now + 300, "scope": "admin"}
    return {
        "signed by nobody": f"{encoded({'alg': 'none', 'kid': 'one'})}.{payload}.",
        "signed with the public key as a secret": confused,
        "another's signature": token(OTHER),
        "another key's id": token(RSA, "two"),
        "an algorithm that the key is not of": token(RSA, "one", "PS256"),
        "an unknown key": token(RSA, "three"),
        "no key id, with several keys": token(RSA, None),
        "a key of its own": jwt.encode(admin, OTHER, "RS256", {"kid": "one", "jwk": jwk(OTHER, "one")}),
        "more scopes": f"{header}.{encoded(admin)}.{signature}",
        "expired": token(exp=now - 60),
        "not yet": token(nbf=now + 90),
        "for ever": token(exp=None),
        "another audience": token(aud="feed"),
        "no audience": token(aud=None),
        "another issuer": token(iss="https://login.example.evil"),
        "nobody": token(sub=None),
        "a critical extension": jwt.encode(admin, RSA, "RS256", {"kid": "one", "crit": ["x"], "x": 1}),
        "too long": token(more="x" * MAX_TOKEN_BYTES),
        "no token": "x.y.z",
        "empty": "..",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(_forged()))
def test_what_is_forged_or_not_for_us_is_refused(provider: Provider, kind: str) -> None:
    tokens = Tokens(config(provider.url))
    with pytest.raises(Refused) as refused:
        who(tokens, _forged()[kind])
    assert "example" not in str(refused.value)
    assert who(tokens, token()).scopes == ("read",)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda content: content.decode("latin-1")))
def test_any_text_at_all_is_refused_and_nothing_else(text: str) -> None:
    with pytest.raises(Refused):
        who(Tokens(config("/nowhere")), text)


def test_a_flood_of_unknown_keys_does_not_reach_the_provider(provider: Provider) -> None:
    clock = Clock()
    tokens = Tokens(config(provider.url), clock=clock)

    async def flood() -> None:
        await tokens.caller(token())
        made = [tokens.caller(token(RSA, f"k{number}")) for number in range(50)]
        assert all(isinstance(told, Refused) for told in await asyncio.gather(*made, return_exceptions=True))

    asyncio.run(flood())
    assert provider.asked == 1
    clock.now += LEAST_BETWEEN_S + 1
    with pytest.raises(Refused):
        who(tokens, token(RSA, "k99"))
    assert provider.asked == 2


def test_a_new_key_counts_at_once_and_a_withdrawn_one_no_longer(provider: Provider) -> None:
    clock = Clock()
    tokens = Tokens(config(provider.url), clock=clock)
    who(tokens, token())
    provider.keys = [jwk(OTHER, "new")]
    clock.now += LEAST_BETWEEN_S + 1
    assert who(tokens, token(OTHER, "new")).name == "ads"
    with pytest.raises(Refused, match="none of the issuer's"):
        who(tokens, token(sub="later"))


def test_known_keys_count_on_while_the_provider_is_away(provider: Provider) -> None:
    clock = Clock()
    tokens = Tokens(config(provider.url), clock=clock)

    async def read(name: str, asked: int) -> str:
        caller = await tokens.caller(token(sub=name))
        async with asyncio.timeout(30):
            while provider.asked < asked:  # the refresh runs beside it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # and notes what it was told
        return caller.name

    assert asyncio.run(read("a", asked=1)) == "a"
    provider.status = 500
    clock.now += REFRESH_S + 1
    assert asyncio.run(read("b", asked=2)) == "b"
    assert provider.asked == 2
    assert asyncio.run(read("c", asked=2)) == "c"
    assert provider.asked == 2


def test_without_any_key_yet_the_answer_is_that_it_is_not_ready(provider: Provider) -> None:
    provider.status = 500
    with pytest.raises(NotReady, match="could not be read"):
        who(Tokens(config(provider.url)), token())


@pytest.mark.parametrize("keys", [[], [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}], [{"kty": "??"}]])
def test_a_set_without_a_public_key_is_none(provider: Provider, keys: list[Any]) -> None:
    provider.keys = keys
    with pytest.raises(NotReady):
        who(Tokens(config(provider.url)), token())


def test_the_keys_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [jwk(RSA, "one")]}))
    tokens = Tokens(config(str(file)))
    assert who(tokens, token()).name == "ads"
    assert who(tokens, token(RSA, None, sub="feed")).name == "feed"


def test_keys_are_not_read_over_a_line_that_others_can_write_to() -> None:
    assert config("http://127.0.0.1:9/jwks").jwks == "http://127.0.0.1:9/jwks"
    with pytest.raises(ValidationError, match="https"):
        config("http://login.example/jwks")


def test_tokens_and_keys_pass_the_same_doors(served: Served, tmp_path: Path, provider: Provider) -> None:
    doors = Doors(Folder.at(str(tmp_path / "keys.json")), Tokens(config(provider.url, rate=0.01)))
    app = create_app(served.engine, doors=doors)

    async def ask(path: str, presented: str | None) -> httpx.Response:
        headers = {} if presented is None else {"authorization": f"Bearer {presented}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sonder", headers=headers) as client:
            return await client.get(path)

    async def asked() -> None:
        limited = token(sub="limited", sonder_fields=["segments", "audiences"])
        assert (await ask("/v1/users/user-1", token())).status_code == 200
        slow = await ask("/v1/users/user-1", token())
        assert (slow.status_code, slow.headers["retry-after"]) == (429, "100")
        assert (await ask("/v1/users/user-1", limited)).status_code == 403
        assert (await ask("/v1/users/user-1/segments", limited)).status_code == 200
        assert (await ask("/v1/users/user-1", token(sub="w", scope="write"))).status_code == 403
        for presented in (None, "x.y.z", "sk_1_2"):
            told = await ask("/v1/users/user-1", presented)
            assert (told.status_code, told.headers["www-authenticate"]) == (401, "Bearer")

    asyncio.run(asked())
