"""infra/ray-up: cluster files that Ray's own schema and checks take, for machines at hand and for a cloud."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from services.gateway import proxy
from tests.infra.manifests import ROOT, pods

FOLDER = ROOT / "infra" / "ray-up"
FILES = ("cluster.yaml", "cloud.yaml")


def loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def prepared(config: Any) -> Any:
    """As `ray up` reads it, up to the point where it talks to machines or a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str) -> None:
    config = prepared(loaded(name))
    assert config["cluster_name"] == "sonder"
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [(), ("auth",)])
def test_a_misspelt_key_is_refused(name: str, place: tuple[str, ...]) -> None:
    config = loaded(name)
    parent = config
    for step in place:
        parent = parent[step]
    parent["misspelt"] = 1
    with pytest.raises(jsonschema.ValidationError):
        prepared(config)


def test_more_workers_than_machines_are_refused() -> None:
    config = loaded("cloud.yaml")
    config["available_node_types"]["work"]["min_workers"] = 99
    with pytest.raises(ValueError, match="min_workers"):
        prepared(config)


@pytest.mark.parametrize("name", FILES)
def test_its_commands_are_shell_and_what_it_copies_exists(name: str) -> None:
    config = loaded(name)
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    assert len(commands) == 6
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    made_first = {"./dist", "~/.ray/auth_token"}
    assert all((ROOT / source).exists() for source in config["file_mounts"].values() if source not in made_first)


@pytest.mark.parametrize("name", FILES)
def test_heads_do_no_work_and_their_dashboard_is_not_open(name: str) -> None:
    (start,) = [c for c in loaded(name)["head_start_ray_commands"] if "ray start" in c]
    options = shlex.split(start.split("ray start")[1])
    assert "--num-cpus=0" in options
    assert "--dashboard-host=127.0.0.1" in options


def test_the_environment_is_that_of_the_pods(tmp_path: Path) -> None:
    script = FOLDER / "environment.sh"
    told = subprocess.run(
        ["env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin", "bash", "-ec", f". {script} && env"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    here = dict(line.split("=", 1) for line in told.splitlines())
    of_pods = {one["name"]: one["value"] for one in pods("base")[0].container["env"] if "value" in one}
    of_the_image = {"HOME", "RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_SERVE_HAPROXY_METRICS_PORT"}
    of_the_image |= {"RAY_SERVE_HAPROXY_STATS_PORT", "PROMETHEUS_MULTIPROC_DIR"}
    for name in of_pods.keys() - of_the_image:
        assert here[name] == of_pods[name], name
    assert proxy.SILENCE.items() <= here.items()
    assert here["RAY_AUTH_MODE"] == "token"
    assert not re.search(r"PASSWORD=|KEY=", told)
