"""The Serve configurations: of one machine (infra/serve/sonder.yaml), of clusters (cluster.yaml, the environments)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from services.gateway.app import GATEWAY_OPTIONS, STAGE_OPTIONS, STAGES, GatewayArgs, build
from tests.infra.manifests import ENVIRONMENTS, ROOT, cluster_specs, resources, serve_config
from tests.redis_server import running_redis
from tests.services.conftest import TinyRelease, build_tiny_release

SERVE = ROOT / "infra" / "serve"


def written(name: str) -> Any:
    return yaml.safe_load((SERVE / name).read_text(encoding="utf-8"))


CONFIGS = {
    "sonder.yaml": written("sonder.yaml"),
    "cluster.yaml": written("cluster.yaml"),
    **{environment: serve_config(environment) for environment in ENVIRONMENTS},
}
ON_CLUSTERS = [name for name in CONFIGS if name != "sonder.yaml"]


def deployments(config: Any) -> dict[str, Any]:
    return {one["name"]: one for one in config["applications"][0]["deployments"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_rays_own_schema_and_the_applications_arguments_take_it(name: str) -> None:
    ServeDeploySchema.model_validate(CONFIGS[name])
    (application,) = CONFIGS[name]["applications"]
    GatewayArgs.model_validate(application["args"])
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"


@pytest.mark.parametrize("name", CONFIGS)
def test_it_names_every_deployment_and_no_other(name: str) -> None:
    assert set(deployments(CONFIGS[name])) == {"gateway", "refresh", *STAGES}


def unknown_keys(config: Any) -> set[str]:
    """What Ray's schema drops in silence: it takes any key anywhere."""
    kept = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
    found = set(_dropped(config, kept))
    for one in deployments(config).values():  # a plain mapping to the schema
        found |= set(one.get("autoscaling_config", {})) - set(AutoscalingConfig.model_fields)
    return found


def _dropped(given: Any, kept: Any) -> Iterator[str]:
    if isinstance(given, dict):
        yield from set(given) - set(kept)
        for key in set(given) & set(kept):
            yield from _dropped(given[key], kept[key])
    elif isinstance(given, list):
        for one, other in zip(given, kept, strict=True):
            yield from _dropped(one, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_one_of_rays(name: str) -> None:
    assert unknown_keys(CONFIGS[name]) == set()


@pytest.mark.parametrize(
    "place",
    [
        lambda config: config,
        lambda config: config["http_options"],
        lambda config: config["applications"][0],
        lambda config: config["applications"][0]["deployments"][0],
        lambda config: config["applications"][0]["deployments"][0]["ray_actor_options"],
        lambda config: config["applications"][0]["deployments"][0]["autoscaling_config"],
    ],
)
def test_a_misspelt_key_is_told(place: Callable[[Any], Any]) -> None:
    config = copy.deepcopy(CONFIGS["cluster.yaml"])
    place(config)["misspelt"] = 1
    assert unknown_keys(config) == {"misspelt"}


def test_the_text_in_the_base_is_the_file_in_infra_serve() -> None:
    (service,) = [one for one in resources("base") if one["kind"] == "RayService"]
    assert service["spec"]["serveConfigV2"] == (SERVE / "cluster.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_changes_the_workspace_and_the_bounds_alone(environment: str) -> None:
    base, here = copy.deepcopy(CONFIGS["cluster.yaml"]), copy.deepcopy(CONFIGS[environment])
    for config in (base, here):
        del config["applications"][0]["args"]["workspace"]
        for one in deployments(config).values():
            for bound in ("min_replicas", "max_replicas"):
                one.get("autoscaling_config", {}).pop(bound, None)
    assert here == base


@pytest.mark.parametrize("name", ON_CLUSTERS)
def test_reads_survive_a_lost_replica_and_a_store_has_one_writer(name: str) -> None:
    found = deployments(CONFIGS[name])
    assert found["gateway"]["autoscaling_config"]["min_replicas"] >= 2
    assert found["refresh"] == {"name": "refresh", "num_replicas": 1}
    assert CONFIGS[name]["applications"][0]["args"]["needs_keys"]
    assert CONFIGS[name]["proxy_location"] == "EveryNode"


@pytest.mark.parametrize("name", ON_CLUSTERS)
def test_more_replicas_come_before_requests_are_refused(name: str) -> None:
    for deployment, options in (
        (d, GATEWAY_OPTIONS if d == "gateway" else STAGE_OPTIONS) for d in (*STAGES, "gateway")
    ):
        scaling = deployments(CONFIGS[name])[deployment]["autoscaling_config"]
        assert scaling["target_ongoing_requests"] < options["max_ongoing_requests"]
        assert scaling["min_replicas"] <= scaling["max_replicas"]


@pytest.mark.parametrize("name", ["base", *ENVIRONMENTS])
def test_the_least_application_fits_on_the_least_workers_and_the_largest_on_the_most(name: str) -> None:
    (group,) = cluster_specs(name)["RayService"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = float(group["rayStartParams"].get("num-cpus", limits["cpu"]))
    for bound, nodes in (("min_replicas", group["minReplicas"]), ("max_replicas", group["maxReplicas"])):
        needed = 0.0
        for one in deployments(CONFIGS["cluster.yaml" if name == "base" else name]).values():
            replicas = one.get("autoscaling_config", {}).get(bound, 1)
            needed += replicas * one.get("ray_actor_options", STAGE_OPTIONS["ray_actor_options"])["num_cpus"]
        assert needed <= cpus * nodes, bound


@pytest.fixture
def released(tmp_path: Path) -> Iterator[tuple[TinyRelease, str]]:
    with running_redis() as url:
        yield build_tiny_release(tmp_path), url


def bound(release: TinyRelease, url: str, config: Any) -> dict[str, Any]:
    """The deployments that a configuration's arguments build, by name."""
    args = config["applications"][0]["args"] | {"workspace": release.workspace.root.uri, "store": url}
    gateway = build(GatewayArgs.model_validate(args))._bound_deployment
    others = [one._bound_deployment for one in gateway.init_kwargs.values() if hasattr(one, "_bound_deployment")]
    return {one.name: one for one in (gateway, *others)}


@pytest.mark.parametrize("name", ON_CLUSTERS)
def test_the_arguments_build_the_application_and_the_file_overrides_it(
    name: str, released: tuple[TinyRelease, str]
) -> None:
    from ray.serve._private.application_state import override_deployment_info
    from ray.serve._private.deployment_info import DeploymentInfo

    made = bound(*released, CONFIGS[name])
    assert set(made) == set(deployments(CONFIGS[name]))
    infos = {
        one.name: DeploymentInfo(
            deployment_config=one._deployment_config,
            replica_config=one._replica_config,
            start_time_ms=0,
            actor_name=one.name,
            deployer_job_id="",
            version="1",
        )
        for one in made.values()
    }
    (application,) = ServeDeploySchema.model_validate(CONFIGS[name]).applications
    for deployment, info in override_deployment_info(infos, application).items():
        asked, options = deployments(CONFIGS[name])[deployment], info.deployment_config
        if "autoscaling_config" not in asked:
            assert (deployment, options.autoscaling_config, options.num_replicas) == ("refresh", None, 1)
            continue
        scaling = options.autoscaling_config.model_dump()
        assert {key: scaling[key] for key in asked["autoscaling_config"]} == asked["autoscaling_config"]
        # What the file does not name is the code's.
        code = GATEWAY_OPTIONS if deployment == "gateway" else STAGE_OPTIONS
        assert options.max_ongoing_requests == code["max_ongoing_requests"]
        assert options.max_queued_requests == code["max_queued_requests"]


@pytest.mark.slow
@pytest.mark.ray
def test_ray_serve_deploys_a_clusters_configuration(ray_session: None, released: tuple[TinyRelease, str]) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client

    release, url = released
    config = copy.deepcopy(CONFIGS["local"])
    (application,) = config["applications"]
    application["args"] |= {"workspace": release.workspace.root.uri, "store": url}
    for one in application["deployments"]:  # the machine of the tests is smaller than the pods
        one["ray_actor_options"] = {"num_cpus": 0.1}
    serve.start(proxy_location="Disabled")
    client = _get_global_client()
    try:
        client.deploy_apps(ServeDeploySchema.model_validate(config | {"proxy_location": "Disabled"}))
        deadline = time.monotonic() + 300
        while (status := serve.status().applications.get("sonder")) is None or status.status != "RUNNING":
            assert time.monotonic() < deadline, status
            assert status is None or status.status != "DEPLOY_FAILED", status.message
            time.sleep(0.5)
        replicas = {name: sum(found.replica_states.values()) for name, found in status.deployments.items()}
        assert replicas == {"gateway": 2, "refresh": 1, **dict.fromkeys(STAGES, 1)}
    finally:
        serve.delete("sonder")
