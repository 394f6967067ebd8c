"""The front proxy as a node of a cluster has it: no request is lost to a machine that falls silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.namespaces import HUB, Network
from services.gateway.proxy import node_environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("namespaces")]
# What Ray Serve writes of it (ray/serve/_private/haproxy_templates.py), with the values of `node_environment`.
CONFIG = """
defaults
    mode http
    timeout connect {connect}s
    timeout client 60s
    timeout server 60s
    option redispatch 1
    retry-on {retry_on}
    option idle-close-on-response
    balance leastconn
frontend http_frontend
    bind 0.0.0.0:8000
    default_backend sonder
backend sonder
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter {inter} check
    server one {one}:30000 check observe layer4 error-limit 3 on-error mark-down
    server two {two}:30000 check observe layer4 error-limit 3 on-error mark-down
"""
REPLICA = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.2 if self.path.startswith("/v1") else 0)  # so that some are on their way when it dies
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments): ...
ThreadingHTTPServer((sys.argv[1], 30000), Replica).serve_forever()
"""
READER = """
import json, sys, threading, time, httpx
found, until = [], time.monotonic() + 9
def read():
    with httpx.Client(base_url=sys.argv[1], trust_env=False, timeout=30) as http:
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                status = http.get("/v1/users/u").status_code
            except httpx.TransportError:
                status = 0
            found.append([status, time.monotonic() - started])
            time.sleep(0.02)
print("reading", flush=True)
readers = [threading.Thread(target=read) for _ in range(8)]
[reader.start() for reader in readers]
[reader.join() for reader in readers]
bad = [[status, round(seconds, 2)] for status, seconds in found if status != 200]
print(json.dumps({"n": len(found), "bad": bad, "most_s": max(t for _, t in found)}))
"""


@pytest.mark.parametrize("how", ["cut", "kill"])
def test_no_read_fails_when_a_machine_falls_silent_or_dies(short_path: Path, how: str) -> None:
    with Network() as network:
        addresses = {name: network.add(name) for name in ("one", "two")}
        for name, address in addresses.items():
            network.start(name, [sys.executable, "-c", REPLICA, address], os.environ, stderr=subprocess.DEVNULL)
        environment = node_environment(short_path / "s")
        file = short_path / "haproxy.cfg"
        values = {name: environment[f"RAY_SERVE_HAPROXY_{name}"] for name in ("RETRY_ON", "HEALTH_CHECK_INTER")}
        connect = environment["RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S"]
        file.write_text(
            CONFIG.format(connect=connect, retry_on=values["RETRY_ON"], inter=values["HEALTH_CHECK_INTER"], **addresses)
        )
        network.start(
            HUB, [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)], os.environ, stderr=-3
        )
        time.sleep(3)
        command = [sys.executable, "-c", READER, f"http://{network.addresses[HUB]}:8000"]
        reader = network.start(HUB, command, os.environ, stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        threading.Timer(2.0, network.cut if how == "cut" else network.kill, args=["one"]).start()
        told, _ = reader.communicate(timeout=60)
    found = json.loads(told)
    assert found["n"] > 100
    assert found["bad"] == []
    assert found["most_s"] < 6  # an answer that was on its way from the silent machine is waited for, then asked again
