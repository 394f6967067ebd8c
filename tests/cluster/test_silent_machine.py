"""The front proxy as a node of a cluster has it: no request is lost to a machine that falls silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.namespaces import HUB, Network
from services.gateway.proxy import node_environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("namespaces")]
NUM_READERS, GIVEN_UP_AFTER_S = 8, 5.0  # the latter by services/gateway/proxy.py
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
    wbufsize = -1  # one packet: an answer that breaks off behind its headers can be asked for again by the client only
    def do_GET(self):
        time.sleep(float(sys.argv[2]) if self.path.startswith("/v1") else 0)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments): ...
with ThreadingHTTPServer((sys.argv[1], 30000), Replica) as server:
    print("up", flush=True)
    server.serve_forever()
"""
READER = """
import json, sys, threading, time, httpx
with httpx.Client(base_url=sys.argv[1], trust_env=False, timeout=30) as http:
    while True:
        try:
            assert http.get("/v1/users/u").status_code == 200
            break
        except httpx.ConnectError:
            time.sleep(0.1)
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
readers = [threading.Thread(target=read) for _ in range(int(sys.argv[2]))]
[reader.start() for reader in readers]
[reader.join() for reader in readers]
bad = [[status, round(seconds, 2)] for status, seconds in found if status != 200]
print(json.dumps({"n": len(found), "bad": bad, "most_s": max(t for _, t in found)}))
"""


@pytest.mark.parametrize(
    ("how", "takes_s"),
    [
        ("cut", 1.5),  # nearly every reader waits for an answer at that moment: what was sent is acknowledged
        ("cut", 0.0),  # nearly every one is between two reads: the next goes out on a connection that was open, unheard
        ("kill", 0.2),
    ],
)
def test_no_read_fails_when_a_machine_falls_silent_or_dies(short_path: Path, how: str, takes_s: float) -> None:
    with Network() as network:
        addresses = {name: network.add(name) for name in ("one", "two")}
        for name, address in addresses.items():
            replica = [sys.executable, "-c", REPLICA, address, str(takes_s)]
            started = network.start(name, replica, os.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert started.stdout is not None
            assert started.stdout.readline() == "up\n"
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
        command = [sys.executable, "-c", READER, f"http://{network.addresses[HUB]}:8000", str(NUM_READERS)]
        reader = network.start(HUB, command, os.environ, stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        threading.Timer(2.0, network.cut if how == "cut" else network.kill, args=["one"]).start()
        told, _ = reader.communicate(timeout=60)
    found = json.loads(told)
    assert found["n"] > 2 * NUM_READERS
    assert found["bad"] == []  # none was waited for as long as a reader waits, 30 s
    if how == "cut":  # else nothing was in the hands of the machine, and nothing was shown
        assert found["most_s"] > GIVEN_UP_AFTER_S
