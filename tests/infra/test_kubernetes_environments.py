"""infra/kubernetes: environments differ where they should, keep a calendar, and are what the guides say."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pipelines.cli import app as sonder_command
from sonder.core.config import load
from tests.infra.manifests import (
    ENVIRONMENTS,
    KUBERNETES,
    ROOT,
    cluster_specs,
    named,
    pods,
    resources,
    serve_config,
)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_nightly_build_has_ended_before_the_next_one_starts(environment: str) -> None:
    spec = named(environment, "RayCronJob")["spec"]
    minute, hour, *rest = spec["schedule"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert rest == ["*", "*", "*"]
    assert zoneinfo.ZoneInfo(spec["timeZone"])
    job = spec["jobTemplate"]
    assert (job["backoffLimit"] + 1) * job["activeDeadlineSeconds"] < 24 * 3600  # each try has its own deadline
    assert job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert spec["suspend"] is (environment == "local")


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
def test_the_entrypoints_are_commands_of_sonder(kind: str) -> None:
    spec = named("base", kind)["spec"]
    program, command, *arguments = spec.get("jobTemplate", spec)["entrypoint"].split()
    assert program == "sonder"
    options = {name for one in get_command(sonder_command).commands[command].params for name in one.opts}  # type: ignore[attr-defined]
    asked = {argument for argument in arguments if argument.startswith("--")}
    assert arguments[arguments.index("--config") + 1] == "/etc/sonder/sonder.yaml"
    assert asked <= options


def test_serving_is_drained_one_pod_at_a_time() -> None:
    budgets = {
        one["metadata"]["name"]: one["spec"] for one in resources("base") if one["kind"] == "PodDisruptionBudget"
    }
    assert budgets["serving"]["maxUnavailable"] == 1
    assert cluster_specs("base")["RayService"]["workerGroupSpecs"][0]["minReplicas"] >= 2
    (serving,) = [pod for pod in pods("base") if pod.group == "serving"]
    assert serving.spec["terminationGracePeriodSeconds"] > 30  # the draining period of Serve's direct ingress


MAY_DIFFER = re.compile(
    r"metadata/(name|namespace)$|/image$|externalName|serveConfigV2|/(min|max)?[rR]eplicas$|spec/schedule$"
    r"|data/sonder\.yaml|workerGroupSpecs/\d/rayStartParams/num-cpus$"
)
LOCAL_ONLY = re.compile(r"/resources/|/volumes/4|/volumeMounts/4|spec/suspend$|^NetworkPolicy/redis|^Service/redis")


def resource_of(name: str) -> str:
    return "/".join(name.split("/")[:2])


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{index}")
    else:
        yield path, value


def flat(environment: str) -> dict[str, Any]:
    return {
        f"{one['kind']}/{'' if one['kind'] == 'Namespace' else one['metadata']['name']}{path}": value
        for one in resources(environment)
        for path, value in leaves(one)
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environments_differ_only_where_they_should(environment: str) -> None:
    base, here = flat("base"), flat(environment)
    own = {name.split("/")[0] + "/" + name.split("/")[1] for name in here} - {
        name.split("/")[0] + "/" + name.split("/")[1] for name in base
    }
    allowed = {"ConfigMap/sonder-configuration"} | (
        {"Deployment/valkey", "NetworkPolicy/valkey", "PersistentVolumeClaim/workspace"}
        if environment == "local"
        else {
            "PodMonitor/sonder-gateways",
            "PodMonitor/sonder-ray",
            "PrometheusRule/sonder",
            "NetworkPolicy/monitoring",
        }
    )
    assert own == allowed
    changed = {
        name for name in base.keys() | here.keys() if base.get(name) != here.get(name) and resource_of(name) not in own
    }
    surprising = {n for n in changed if not MAY_DIFFER.search(n)}
    if environment == "local":
        surprising = {n for n in surprising if not LOCAL_ONLY.search(n)}
    assert not surprising
    assert {one["metadata"]["namespace"] for one in resources(environment) if one["kind"] != "Namespace"} == {
        f"sonder-{environment}"
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_builds_and_serving_share_a_workspace_and_a_store(environment: str) -> None:
    folder = KUBERNETES / "overlays" / environment
    config = load(folder / "sonder.yaml")
    args = serve_config(environment)["applications"][0]["args"]
    assert (config.workspace, config.serving.store) == (args["workspace"], args["store"])
    assert named(environment, "ConfigMap")["data"]["sonder.yaml"] == (folder / "sonder.yaml").read_text("utf-8")
    assert str(config.workspace).startswith("s3://") is (environment != "local")


def test_the_alerts_are_those_of_the_observability_folder() -> None:
    alerts = yaml.safe_load((ROOT / "infra" / "observability" / "alerts.yaml").read_text(encoding="utf-8"))
    assert named("production", "PrometheusRule")["spec"] == alerts


@pytest.mark.parametrize("page", ["docs/kubernetes.md", "docs/capacity.md", "infra/README.md"])
def test_every_link_of_a_guide_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_guide_names_what_there_is() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    names = {(one["kind"], one["metadata"]["name"]) for one in resources("base")}
    assert {kind for kind, _ in names if kind.startswith("Ray")} == set(
        re.findall(r"^\| (Ray\w+) `", guide, re.MULTILINE)
    )
    labels = set(re.findall(r"sonder\.dev/[\w-]+", (KUBERNETES / "base" / "network.yaml").read_text(encoding="utf-8")))
    assert labels == {"sonder.dev/reads-profiles", "sonder.dev/holds-data"}
    assert all(label in guide for label in labels)
