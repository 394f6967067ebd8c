"""`make demo`: the main job on a synthetic log, from nothing to answers over HTTP, in under six minutes on two cores.

Everything goes through the commands that a user would type; what the demo adds is that it types them and says why.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.rule import Rule

from pipelines.build import build
from pipelines.promotion import promote_release
from pipelines.story import pick_users, read_story
from pipelines.terminal import console, show_build, show_story
from sonder.client import Client
from sonder.core.config import SonderConfig, load
from sonder.core.errors import StageUnavailable
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.synthetic import WorldConfig, write_world

USERS, DAYS, SEED = 5_000, 90, 7
SERVE_TIMEOUT_S = 120
logger = logging.getLogger("sonder")


def run(out: Path) -> None:
    """Write a world into `out`, build it, show it, serve it, ask it, stop it."""
    started = time.perf_counter()
    world, config_file = out / "world", out / "world" / "sonder.yaml"
    _say(
        f"1. A product's log: {USERS:,} users over {DAYS} days, seed {SEED}",
        f"sonder synth --users {USERS} --out {world}",
    )
    write_world(WorldConfig(num_users=USERS, num_days=DAYS, seed=SEED), Folder.at(str(world.resolve())))
    overrides = [f"workspace={out / 'workspace'}", "encoder.max_minutes=1"]
    config = load(config_file, overrides)

    _say("2. From the log to a release", f"sonder build -c {config_file} --set {' --set '.join(overrides)}")
    release_id = build(config)
    promote_release(config, release_id, reason="demo")
    show_build(config, release_id, config_file)

    _say("3. Two of its users", f"sonder profile USER -c {config_file}")
    workspace = Workspace.at(config.workspace)
    profiles = workspace.release(release_id) / "profiles"
    files = [profiles / name for name in profiles.files() if name.endswith(".parquet")]
    users = pick_users(files, count=2)
    for user_id in users:
        show_story(read_story(workspace, user_id))

    port = _free_port()
    _say("4. The same over HTTP", f"sonder serve -c {config_file} --port {port}")
    with _served(config_file, overrides, port) as client:
        _ask(client, f"http://127.0.0.1:{port}", users)
    _go_on(config, config_file, time.perf_counter() - started)


def _say(title: str, command: str) -> None:
    console.print(Rule(title, align="left"))
    console.print(f"$ {escape(command)}", style="dim", soft_wrap=True)


@contextmanager
def _served(config_file: Path, overrides: list[str], port: int) -> Iterator[Client]:
    """`sonder serve` in a process of its own, as a user would start it; stopped at the end."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "pipelines.cli", "serve", "-c", str(config_file), "--port", str(port), *sets]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                _wait_until_ready(client, server)
                yield client
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_ready(client: Client, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SERVE_TIMEOUT_S
    while not client.is_ready():
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            _, told = server.communicate()
            raise StageUnavailable(f"The server did not come up: {told[-2000:]}", expected="an answer on /readyz")
        time.sleep(0.5)


def _ask(client: Client, base: str, users: list[str]) -> None:
    user = users[0]
    console.print(f"$ curl {base}/v1/users/{user}?fields=segments,scores", style="dim", soft_wrap=True)
    console.print_json(data=client.profile(user, fields=("segments", "scores")))
    console.print(f"$ curl {base}/v1/users/{user}/recommendations?k=3", style="dim", soft_wrap=True)
    console.print_json(data=client.recommendations(user, k=3))
    console.print(f"$ curl {base}/v1/users/nobody?fields=scores", style="dim", soft_wrap=True)
    console.print_json(data=client.profile("nobody", fields=("scores",)))


def _go_on(config: SonderConfig, config_file: Path, seconds: float) -> None:
    console.print(Rule(f"Done in {seconds:.0f} s. Now your own log", align="left"))
    sonder = Path(sys.argv[0])
    for command, why in (
        (f"{sonder} init LOG --out sonder.yaml", "looks at your log and writes a commented configuration"),
        (f"{sonder} build", "makes a release; killed, the same command goes on"),
        (f"{sonder} profile USER", "one user's story"),
        (f"{sonder} serve", "the same over HTTP, on http://127.0.0.1:8000/docs"),
        (f"{sonder} serve -c {config_file} --set workspace={config.workspace}", "this demo again"),
    ):
        console.print(f"  {escape(command)}   [dim]{why}[/dim]", soft_wrap=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
