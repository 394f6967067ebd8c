"""Start the application for `sonder serve` and for tests: Ray if needed, the proxy, the deployments, all on loopback.

Ray reads the proxy's mode and the node's address from the environment when it is imported, so the variables are set
first and this module imports Ray late. A Ray that runs already (this process is connected to one, or RAY_ADDRESS
names one) keeps its own mode, its own addresses and its other applications.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import httpx

from services.gateway.proxy import LOOPBACK, MAX_FOLDER_LENGTH, is_free, proxy_environment
from services.gateway.waterfall import printed
from sonder.core import metrics, telemetry
from sonder.core.config import TokensConfig
from sonder.core.errors import ConfigurationError, NotReady
from sonder.core.keys import read_keys
from sonder.core.loopback import LOOPBACK_ENVIRONMENT, LOOPBACKS
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import Release, served_release

APPLICATION = "sonder"
MOST_SHOWN = 300  # characters of an answer, in an error


def serve_forever(
    workspace: str,
    host: str = LOOPBACK,
    port: int = 8000,
    release: str | None = None,
    gateways: int = 1,
    needs_keys: bool | None = None,
    store: str | None = None,
    log_features: float = 0.0,
    trace: bool = False,
    tokens: TokensConfig | None = None,
    grpc_port: int | None = None,
    local_dir: str | None = None,
) -> None:
    """Serve until interrupted; a second interrupt ends Ray without waiting for requests under way.

    `trace`: the waterfall of each request is printed.
    """
    telemetry.configure("sonder-serve")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, _exit)  # what was started until then is ended too
    needs_keys = host not in LOOPBACKS if needs_keys is None else needs_keys
    if needs_keys and tokens is None and not read_keys(Workspace.at(workspace).keys):
        raise ConfigurationError(
            f"Serving at {host} needs API keys, and there is none",
            expected="a key for whoever calls, or serving.tokens of an identity provider",
            do="Make one with `sonder keys create NAME --scope read`; or set serving.needs_keys=false where something "
            "in front of the gateway asks who calls.",
        )
    if tokens is not None and not needs_keys:
        raise ConfigurationError(
            "serving.tokens is set, and nobody is asked for one",
            expected="serving.needs_keys=true beside it on loopback",
            do="Set it, or leave serving.tokens out.",
        )
    options = {
        "store": store,
        "local_dir": local_dir,
        "gateways": gateways,
        "needs_keys": needs_keys,
        "log_features": log_features,
        "tokens": tokens,
        "grpc": None if grpc_port is None else {"host": host, "port": grpc_port},
    }
    with (
        _traced() if trace else nullcontext(),
        started(workspace, host=host, port=port, release=release, **options) as url,
    ):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        print(greeting(url, release or served_release(Workspace.at(workspace))), flush=True)
        while not stopped.wait(1.0):
            pass
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _exit)
        print("Stopping: requests under way are finished first.", flush=True)


@contextmanager
def _traced() -> Iterator[None]:
    """Processes that start within the block write their spans to a folder, which this one reads and prints."""
    if _is_connected() or os.environ.get("RAY_ADDRESS"):
        raise ConfigurationError(
            "A Ray that runs already does not write its spans for this command",
            expected="--trace with a Ray of its own",
            do="Unset RAY_ADDRESS, or set OTEL_EXPORTER_OTLP_ENDPOINT for the cluster.",
        )
    with tempfile.TemporaryDirectory(prefix="sonder-spans-", ignore_cleanup_errors=True) as folder:
        os.environ[telemetry.TRACE_FOLDER] = folder
        with printed(Path(folder)):
            yield


@contextmanager
def started(
    workspace: str, *, host: str = LOOPBACK, port: int = 8000, release: str | None = None, **options: Any
) -> Iterator[str]:
    """The application, running; yields its URL. Ends what it started and nothing else.

    `options`: further arguments of the application (services.gateway.app.GatewayArgs).
    """
    opened = Workspace.at(workspace, options.get("local_dir"))
    opened.node()  # a folder of another workspace is told here
    # Loaded here and not only in the gateway, so that progress and errors are seen by whoever typed the command.
    Release.open(opened, release or served_release(opened)).open_store(options.get("store")).close()
    joins = _is_connected() or bool(os.environ.get("RAY_ADDRESS"))
    grpc = options.get("grpc")
    for setting, wanted in (("--port", port), ("serving.grpc_port", None if grpc is None else grpc["port"])):
        if not joins and wanted is not None and not is_free(host, wanted):
            raise ConfigurationError(
                f"Port {wanted} of {host} is taken",
                expected="a free port",
                do=f"Stop what listens there, or name another one with {setting}.",
            )
    with tempfile.TemporaryDirectory(prefix="sonder-", ignore_cleanup_errors=True) as folder:
        if len(folder) > MAX_FOLDER_LENGTH:
            raise ConfigurationError(
                f"The temporary folder {folder} has {len(folder)} characters",
                expected=f"at most {MAX_FOLDER_LENGTH}: paths of sockets are short",
                do="Set TMPDIR to a shorter one, such as /tmp.",
            )
        args = {"workspace": opened.root.uri, "release": release, **options}
        ray = _joined_ray() if joins else _local_ray(Path(folder))
        with ray, _application(args, host, port, owns_serve=not joins):
            url = f"http://{host}:{port}"
            wait_until_ready(url)
            yield url


def greeting(url: str, release: str) -> str:
    """What to do with a running application."""
    return (
        f"Serving release {release} at {url}\n"
        f"  curl {url}/v1/release\n"
        f"  curl {url}/v1/users/USER\n"
        f"  curl '{url}/v1/users/USER?fresh=true'\n"
        f"  curl '{url}/v1/users/USER/recommendations?k=10'\n"
        f"  curl -H 'content-type: application/json' -d '{{\"user_ids\": [\"USER\"]}}' {url}/v1/users:batchGet\n"
        f"  {url}/docs lists all of it. Interrupt (Ctrl-C) to stop."
    )


@contextmanager
def _local_ray(folder: Path) -> Iterator[None]:
    """A Ray of this process, on loopback, that ends with the block."""
    measured = folder / "metrics"  # of all processes of this node (sonder.core.metrics)
    measured.mkdir(exist_ok=True)
    os.environ.update({**LOOPBACK_ENVIRONMENT, **proxy_environment(folder), metrics.FOLDER: str(measured)})
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            num_cpus=max(2, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(folder / "ray"),
        )
        # Ray's own handler prints a trace and dies at once, which leaves its processes behind.
        signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _joined_ray() -> Iterator[None]:
    """The Ray that this process uses already, or the one that RAY_ADDRESS names; left running."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()  # disconnects


@contextmanager
def _application(args: Mapping[str, Any], host: str, port: int, *, owns_serve: bool) -> Iterator[None]:
    """The deployments, running behind a proxy; of a Serve that is not ours only they are ended."""
    from ray import serve

    from services.gateway.app import GatewayArgs, build

    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "request_timeout_s": 30})
        application = build(GatewayArgs.model_validate(args))
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise NotReady(f"The application did not start: {_why_not()}") from error
        yield
    finally:
        if owns_serve:
            serve.shutdown()
        else:
            serve.delete(APPLICATION)


def _why_not() -> str:
    """What Serve says of the deployments that are not healthy; its logs go away with Ray."""
    from ray import serve

    application = serve.status().applications[APPLICATION]
    failed = {
        n: d.message.strip() for n, d in application.deployments.items() if d.status != "HEALTHY" and d.message.strip()
    }
    return "; ".join(f"{n}: {told.splitlines()[-1]}" for n, told in failed.items()) or application.message


def _is_connected() -> bool:
    """Whether this process uses a Ray already; asked without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def wait_until_ready(url: str, timeout_s: float = 60.0) -> None:
    """The proxy learns of new routes a moment after the deployments are healthy."""
    waiting, found = threading.Event(), ""
    with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as http:  # no HTTP_PROXY leads to loopback
        for _ in range(int(timeout_s / 0.25)):
            try:
                answer = http.get("/readyz")
            except httpx.TransportError as error:
                found = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return
                found = f"{answer.status_code} {' '.join(answer.text.split())[:MOST_SHOWN]}"
            waiting.wait(0.25)
    raise NotReady(
        f"{url}/readyz was not ready within {timeout_s:.0f} s, last: {found}",
        do="Look at the logs of Serve, in the session folder of Ray under logs/serve.",
    )


def _exit(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)
