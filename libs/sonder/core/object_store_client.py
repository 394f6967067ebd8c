"""Clients of object stores, one per bucket, and what their errors mean (`sonder.core.object_store`).

The endpoint and the credentials are what the environment says at each use. Failures of the network and of the server
are tried again with a growing pause for RETRY_S at most. No message repeats what a server said but its error code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache

from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError
from obstore.store import S3Store

from sonder.core.errors import StorageError, StorageUnavailable

RETRY_S = 60.0
MOST_TRIES = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0
CONNECT_S = 5.0
_READ = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REFUSED = {
    "AccessDenied": "these credentials may not do that",
    "InvalidAccessKeyId": "it does not know the access key",
    "SignatureDoesNotMatch": "the secret key is another one",
    "ExpiredToken": "the session token has expired",
}


def located(path: str, tries: int = MOST_TRIES) -> tuple[S3Store, str]:
    """The bucket's client, and the key."""
    bucket, _, key = path.partition("/")
    environment = tuple(os.environ.get(name) for name in _READ)
    return _store(bucket, _endpoint(), tries, environment), key.strip("/")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@lru_cache(maxsize=16)
def _store(bucket: str, endpoint: str | None, tries: int, environment: tuple[str | None, ...]) -> S3Store:
    """One client per bucket, endpoint and credentials in this process; it holds the connections."""
    return S3Store(
        bucket,
        **({"endpoint": endpoint} if endpoint else {}),
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=RETRY_S),
        },
        retry_config={
            "max_retries": tries,
            "retry_timeout": timedelta(seconds=RETRY_S),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
                "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
                "base": 2,
            },
        },
    )


@contextmanager
def explained(path: str) -> Iterator[None]:
    """What a server or the network refuses, as an error that says what to do; an absent file is FileNotFoundError."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError, NotModifiedError):
        raise
    except (FileNotFoundError, BaseError) as error:
        told = _told(path, error)
        if told is not None:
            raise told from None  # obstore's own text repeats request and answer
        raise FileNotFoundError(path) from None


def _told(path: str, error: BaseException) -> StorageError | None:
    """None for an object that is not there."""
    bucket, where = path.split("/", 1)[0], _endpoint() or "AWS"
    match = _CODE.search(str(error))
    code = match.group(1) if match else type(error).__name__
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return StorageError(
            f"There is no bucket {bucket!r} at {where} ({code})",
            expected="a bucket that exists; Sonder makes none",
            do="Make it, or correct the URI or AWS_ENDPOINT_URL.",
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(
            f"{where} refuses requests: the clock of this machine is another one ({code})",
            expected="clocks that differ by less than 15 minutes",
            do="Set the clock, by NTP say.",
        )
    if code in _REFUSED or code in ("PermissionDeniedError", "UnauthenticatedError"):
        return StorageError(
            f"{where} refuses s3://{path}: {_REFUSED.get(code, 'no access')} ({code})",
            expected="credentials that may read, write, list and delete in the bucket",
            do="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), or correct the bucket's policy.",
        )
    if isinstance(error, FileNotFoundError):
        return None
    return StorageUnavailable(
        f"{where} did not answer for s3://{path} ({code})",
        expected=f"an answer within {RETRY_S:.0f} s of trying",
        do="Look whether the endpoint can be reached from this machine, and at AWS_ENDPOINT_URL.",
    )
