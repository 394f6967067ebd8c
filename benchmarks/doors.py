"""What asking who calls costs: microseconds of a check.

    PYTHONPATH=libs:. python -m benchmarks.doors

Rows: an API key; a token that was verified before; one that was not, signed with RSA (2048) and with ECDSA (P-256).
Each number is the median of REPEATS runs.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from services.gateway.doors import Asked, Doors, HttpDoors
from services.gateway.tokens import Tokens
from sonder.core.config import TokensConfig
from sonder.core.keys import create_key
from sonder.core.storage import Folder

CALLS, REPEATS = 2_000, 9
ASKED = Asked("GET", "/v1/users/u1")


async def _empty(scope: Any, receive: Any, send: Any) -> None: ...


async def median_us(call: Callable[[int], Awaitable[Any]], calls: int = CALLS) -> float:
    """Microseconds of a call that is given its number."""
    runs = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for number in range(calls):
            await call(number)
        runs.append((time.perf_counter() - started) / calls * 1e6)
    return statistics.median(runs)


async def measure(folder: Path) -> dict[str, float]:
    """Microseconds by what is presented."""
    private = {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
    }
    kinds = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
    keys = [{**kinds[name].to_jwk(key.public_key(), as_dict=True), "kid": name} for name, key in private.items()]
    (folder / "jwks.json").write_text(json.dumps({"keys": keys}))
    config = TokensConfig(jwks=str(folder / "jwks.json"), issuer="i", audience="a")
    file = Folder.at(str(folder / "keys.json"))
    secret = create_key(file, "reader", scopes=["read"])

    def token(algorithm: str, number: int) -> str:
        claims = {"iss": "i", "aud": "a", "sub": f"s{number}", "scope": "read", "exp": time.time() + 3600}
        return jwt.encode(claims, private[algorithm], algorithm, {"kid": algorithm})

    doors, found = Doors(file, Tokens(config)), {}
    found["API key"] = await median_us(lambda _: doors.refusal(secret, ASKED))
    known = token("RS256", -1)
    found["token, verified before"] = await median_us(lambda _: doors.refusal(known, ASKED))
    for algorithm in private:
        made = iter([token(algorithm, number) for number in range(200 * REPEATS)])
        found[f"token, new, {algorithm}"] = await median_us(lambda _, made=made: doors.refusal(next(made), ASKED), 200)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/users/u1",
        "query_string": b"",
        "headers": [(b"host", b"x"), (b"authorization", f"Bearer {secret}".encode())],
    }
    guarded = HttpDoors(_empty, doors)
    found["API key, with the headers of a request"] = await median_us(lambda _: guarded(scope, None, None))  # type: ignore[arg-type]
    return found


def main() -> None:
    """Print the rows."""
    with tempfile.TemporaryDirectory() as folder:
        for name, us in asyncio.run(measure(Path(folder))).items():
            print(f"| {name} | {us:.1f} |")


if __name__ == "__main__":
    main()
