"""What all tests share: one small Ray for the session, and the folder of real logs if there is one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from sonder.core.config import load
from sonder.core.loopback import LOOPBACK_ENVIRONMENT
from tests.built import BuiltWorld, write_small_world
from tests.hanging import SLOW_TEST_HANGS_AFTER_S
from tests.s3_server import S3Server, running_s3
from tests.two_processes import RayInOneProcess, may_start_ray

os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait for one another sleep instead of keeping a core that other work needs (before torch is imported).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.update(LOOPBACK_ENVIRONMENT)
# Without a server of its own a test's request to S3 goes nowhere: neither to AWS nor to ask for credentials.
os.environ.update(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may start a Ray comes first: it takes longest, in two processes it is all in one. Slow tests get time."""
    items.sort(key=lambda item: not may_start_ray(item.path))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_HANGS_AFTER_S))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayInOneProcess:
    return RayInOneProcess(config, log)


# How long an example takes is the machine's matter, which other jobs share: `timeout` guards against what hangs.
hypothesis.settings.register_profile("sonder", deadline=None)
hypothesis.settings.load_profile("sonder")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray of four logical CPUs, its workers as `ensure_ray` asks for them; tests that use it carry the mark `ray`.

    With workers of another environment every Ray Data job would start its own: seconds for each of hundreds.
    """
    import ray

    from pipelines.ray_runtime import WORKER_ENV

    if os.environ.get("RAY_ADDRESS"):
        pytest.fail("RAY_ADDRESS is set; the tests start a Ray of their own and must not touch yours. Unset it.")
    with tempfile.TemporaryDirectory(prefix="ray") as temp:  # short: socket paths end at 107 characters
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=400_000_000,
            _temp_dir=temp,
            _node_ip_address="127.0.0.1",
            runtime_env={"env_vars": WORKER_ENV},
            _system_config={"prestart_worker_first_driver": False},
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real logs for development; the project works without them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}: they are not part of the project")
    return folder


@pytest.fixture(scope="session")
def built_world(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> BuiltWorld:
    """A small world and its promoted release, made by the real build."""
    from pipelines.build import build
    from sonder.core.workspace import Workspace
    from sonder.releases.registry import Registry

    config_file, overrides = write_small_world(tmp_path_factory.mktemp("world"))
    release_id = build(load(config_file, overrides))
    registry = Registry(Workspace.at(load(config_file, overrides).workspace))
    registry.promote(release_id, reason="test")
    return BuiltWorld(config_file, overrides, release_id)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the session; use `s3` or `s3_environment` to talk to it."""
    with running_s3() as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with this process' environment set for it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
