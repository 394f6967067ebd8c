"""infra/kubernetes: the manifests of every environment are valid, complete, and keep the rules of the house."""

from __future__ import annotations

import copy
import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from pipelines.cli import app as sonder_command
from services.gateway.proxy import proxy_environment
from sonder.core.config import load
from tests.infra.manifests import (
    ENVIRONMENTS,
    KUBERNETES,
    ROOT,
    Pod,
    cluster_specs,
    named,
    pods,
    resources,
    secret_references,
    serve_config,
)
from tests.infra.schemas import refusals, validate

EVERYWHERE = ["base", *ENVIRONMENTS]
ALL_PODS = [pytest.param(e, pod, id=f"{e}-{pod.owner}-{pod.group}") for e in ENVIRONMENTS for pod in pods(e)]
FREE_MAPS = {  # whose keys are names of the user's
    "annotations", "clusterSelector", "labels", "limits", "matchLabels", "metadata", "rayStartParams", "requests",
}  # fmt: skip


# -- schema --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", EVERYWHERE)
def test_every_manifest_is_what_its_server_takes(environment: str) -> None:
    for manifest in resources(environment):
        validate(manifest)
        if manifest["apiVersion"] == "ray.io/v1":
            assert refusals(manifest) == [], manifest["metadata"]["name"]


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each key stands whose spelling a schema can know."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not path or path[-1] not in FREE_MAPS:
                yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys(inner, (*path, index))


def is_refused(manifest: dict[str, Any]) -> bool:
    try:
        validate(manifest)
    except (jsonschema.ValidationError, KeyError):  # KeyError: neither apiVersion nor kind may be missing
        return True
    return False


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob", "RayService", "PodDisruptionBudget"])
def test_a_misspelt_key_is_refused_wherever_it_stands(kind: str) -> None:
    manifest = next(one for one in resources("base") if one["kind"] == kind)
    places = {tuple(p for p in path if isinstance(p, str))[-3:]: path for path in keys(manifest)}
    assert len(places) > 5
    for path in places.values():
        changed = copy.deepcopy(manifest)
        parent = changed
        for step in path[:-1]:
            parent = parent[step]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        assert is_refused(changed), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "schedule"), "15 1 * *"),
        (("spec", "timeZone"), ""),
        (("spec", "concurrencyPolicy"), "Forbid"),  # of CronJob, not of RayCronJob 1.7
        (("spec", "jobTemplate", "submissionMode"), "Job"),
        (("spec", "jobTemplate", "shutdownAfterJobFinishes"), True),  # beside deletionRules
        (("spec", "jobTemplate", "clusterSelector"), {"ray.io/cluster": "a"}),  # beside rayClusterSpec
        (("spec", "jobTemplate", "backoffLimit"), "2"),
        (("spec", "jobTemplate", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "jobTemplate", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
    ],
)
def test_a_wrong_value_is_refused(path: tuple[str, ...], value: Any) -> None:
    manifest = copy.deepcopy(named("base", "RayCronJob"))
    parent = manifest
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


CLUSTER = ("spec", "jobTemplate", "rayClusterSpec")
RULES = ("spec", "jobTemplate", "deletionStrategy", "deletionRules")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ((*RULES, 0, "policy"), "DeleteWorkers", "DeleteWorkers does not go with the autoscaler"),
        ((*RULES, 1, "condition", "ttlSeconds"), 0, "the job goes before its cluster"),
        ((*RULES, 1, "policy"), "DeleteCluster", "two rules"),
        ((*CLUSTER, "workerGroupSpecs", 0, "minReplicas"), 99, "minReplicas above maxReplicas"),
        ((*CLUSTER, "workerGroupSpecs", 1, "groupName"), "work", "two worker groups"),
        ((*CLUSTER, "headGroupSpec", "template", "spec", "restartPolicy"), "Always", "restartPolicy Never"),
        ((*CLUSTER, "headGroupSpec", "resources"), {"CPU": "1"}, "both say what there is"),
        ((*CLUSTER, "networkPolicy"), {"mode": "DenyAll"}, "feature gate"),
        ((*CLUSTER, "upgradeStrategy"), {"type": "Recreate"}, "no job or service makes"),
        (
            (*CLUSTER, "headGroupSpec", "template", "spec", "containers", 0, "env", 0, "name"),
            "REDIS_PASSWORD",
            "the operator sets by itself",
        ),
    ],
)
def test_what_the_controller_refuses_is_told(path: tuple[Any, ...], value: Any, told: str) -> None:
    manifest = copy.deepcopy(named("base", "RayCronJob"))
    parent = manifest
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    validate(manifest)
    (said,) = refusals(manifest)
    assert told in said


# -- pods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "pod"), ALL_PODS)
def test_a_pod_is_nobody_and_writes_only_where_it_is_told_to(environment: str, pod: Pod) -> None:
    security = pod.spec["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod.spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod.spec["volumes"]}
    assert not any("hostPath" in volume for volume in pod.spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod.spec["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize(("environment", "pod"), ALL_PODS)
def test_only_a_head_has_a_token_of_the_kubernetes_api(environment: str, pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is (pod.is_ray_node and pod.group == "head")


@pytest.mark.parametrize(("environment", "pod"), ALL_PODS)
def test_a_pod_has_the_memory_it_asks_for_and_no_more(environment: str, pod: Pod) -> None:
    for container in pod.spec["containers"]:
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["memory"] == most["memory"]
        assert not pod.is_ray_node or asked["cpu"] == most["cpu"]


@pytest.mark.parametrize(("environment", "pod"), ALL_PODS)
def test_images_are_pinned(environment: str, pod: Pod) -> None:
    for container in pod.spec["containers"]:
        name, _, tag = container["image"].rpartition(":")
        assert name
        assert tag not in ("", "latest")


@pytest.mark.parametrize(("environment", "pod"), [p for p in ALL_PODS if p.values[1].is_ray_node])
def test_a_ray_node_is_watched_and_what_watches_it_exists(environment: str, pod: Pod) -> None:
    ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
    known = {*ports, *ports.values(), 52365}  # Ray's agent, which every node starts at that port
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert pod.container[probe]["httpGet"]["port"] in known
    (head, *groups) = [
        group
        for spec in cluster_specs(environment).values()
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    assert all(one["rayStartParams"]["dashboard-agent-listen-port"] == "52365" for one in (head, *groups))


@pytest.mark.parametrize("environment", EVERYWHERE)
def test_every_ray_node_starts_with_the_same_environment(environment: str) -> None:
    found = [pod.container["env"] for pod in pods(environment) if pod.is_ray_node]
    assert len(found) == 8
    assert all(one == found[0] for one in found)


def test_what_sonder_serve_sets_for_the_proxy_is_set_here_too(tmp_path: Any) -> None:
    here = {one["name"]: one.get("value") for one in pods("base")[0].container["env"]}
    left_to_ray = {  # files, which have a folder of their own in a pod; a port; a thread per core; a long draining
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_HAPROXY_NBTHREAD",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
    }  # fmt: skip
    for name, value in proxy_environment(tmp_path).items():
        assert (name in here) is (name not in left_to_ray), name
        assert not value.isdigit() or "PORT" in name or here.get(name, value) == value, name
        if name.endswith("RETRY_ON"):
            assert here[name] == value


@pytest.mark.parametrize("environment", EVERYWHERE)
def test_the_clusters_have_one_head_and_it_does_no_work(environment: str) -> None:
    versions = set()
    for spec in cluster_specs(environment).values():
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["authOptions"] == {"mode": "token", "secretName": "sonder-ray-token"}
        assert spec["enableInTreeAutoscaling"]
        assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
        versions.add(spec["rayVersion"])
    (version,) = versions
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_heads_differ_in_their_component_alone() -> None:
    heads = [copy.deepcopy(spec["headGroupSpec"]) for spec in cluster_specs("base").values()]
    for head in heads:
        del head["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for volume in head["template"]["spec"]["volumes"]:
            volume.get("emptyDir", {}).pop("sizeLimit", None)
    assert heads[0] == heads[1] == heads[2]


# -- references ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_secret_is_referred_to_and_the_guide_makes_it(environment: str) -> None:
    referred = {one for manifest in resources(environment) for one in secret_references(manifest)}
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    made = {
        (name, key)
        for name, rest in re.findall(r"create secret generic (\S+)((?: +\\?\n? *--from-\S+)+)", guide)
        for key in re.findall(r"--from-(?:literal|file)=([\w-]+)=", rest)
    }
    assert referred == made
    assert not [one for one in resources(environment) if one["kind"] == "Secret"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_account_configuration_and_claim_exists(environment: str) -> None:
    have = {(one["kind"], one["metadata"]["name"]) for one in resources(environment)}
    for pod in pods(environment):
        assert pod.owner.startswith("Deployment") or ("ServiceAccount", pod.spec["serviceAccountName"]) in have
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in have
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in have
    selected = named(environment, "RayJob")["spec"]["clusterSelector"]["ray.io/cluster"]
    assert ("RayCluster", selected) in have


def selects(selector: dict[str, Any], pod: Pod) -> bool:
    return set(selector.get("matchLabels", {}).items()) <= set(pod.labels.items())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget", "PodMonitor"])
def test_every_selector_finds_a_pod_and_every_port_is_one_of_its(environment: str, kind: str) -> None:
    for manifest in (one for one in resources(environment) if one["kind"] == kind):
        spec = manifest["spec"]
        found = [pod for pod in pods(environment) if selects(spec.get("podSelector", spec.get("selector")), pod)]
        assert found, manifest["metadata"]["name"]
        ports = {p[k] for pod in found for p in pod.container.get("ports", ()) for k in ("name", "containerPort")}
        for rule in spec.get("ingress", ()):
            assert {port["port"] for port in rule.get("ports", ())} <= ports, manifest["metadata"]["name"]
            assert all(any(selects(peer["podSelector"], p) for p in pods(environment))
                       for peer in rule["from"] if "podSelector" in peer)  # fmt: skip
        assert {endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", ())} <= ports


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_service_leads_to_the_port_of_the_proxy(environment: str) -> None:
    spec = named(environment, "RayService")["spec"]
    (port,) = spec["serveService"]["spec"]["ports"]
    (serving,) = [pod for pod in pods(environment) if pod.group == "serving"]
    assert port["targetPort"] == serve_config(environment)["http_options"]["port"]
    assert {"name": "serve", "containerPort": port["targetPort"]} in serving.container["ports"]


# -- network -------------------------------------------------------------------------------------------------------


def policies(environment: str) -> dict[str, Any]:
    return {one["metadata"]["name"]: one["spec"] for one in resources(environment) if one["kind"] == "NetworkPolicy"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_nothing_is_allowed_that_is_not_said(environment: str) -> None:
    assert policies(environment)["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies(environment).items():
        for rule in spec.get("ingress", ()):
            assert rule.get("from"), f"{name} opens a pod to everybody"
            assert not [peer for peer in rule["from"] if "ipBlock" in peer], name
        for rule in spec.get("egress", ()):
            for peer in rule["to"]:
                assert "169.254.0.0/16" in peer.get("ipBlock", {}).get("except", ["169.254.0.0/16"]), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_ports_of_a_ray_node_are_open_to_its_own_component_alone(environment: str) -> None:
    for pod in (one for one in pods(environment) if one.is_ray_node):
        for name, spec in policies(environment).items():
            for rule in spec.get("ingress", ()) if selects(spec["podSelector"], pod) else ():
                if "ports" not in rule:
                    component = pod.labels["app.kubernetes.io/component"]
                    assert rule["from"] == [
                        {"podSelector": {"matchLabels": {"app.kubernetes.io/component": component}}}
                    ]
                else:
                    ports = {port["port"] for port in rule["ports"]}
                    assert ports <= ({8265, 8000, 8080} if name == "monitoring" else {8265, 8000}), name
    components = {pod.labels["app.kubernetes.io/component"] for pod in pods(environment) if pod.is_ray_node}
    assert components == {"serving", "batch", "nightly"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_who_needs_redis_the_object_store_or_the_api_reaches_it(environment: str) -> None:
    def reaches(pod: Pod, port: int) -> bool:
        return any(
            selects(spec["podSelector"], pod) and any(p["port"] == port for p in rule.get("ports", ()))
            for spec in policies(environment).values()
            for rule in spec.get("egress", ())
        )

    for pod in pods(environment):
        assert reaches(pod, 53)
        if pod.is_ray_node:
            assert reaches(pod, 6379)
            assert reaches(pod, 443)
            assert reaches(pod, 6443) is (pod.group == "head")
        if pod.group == "submitter":
            assert reaches(pod, 8265)
            assert not reaches(pod, 443)


# -- the calendar --------------------------------------------------------------------------------------------------


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
    if "--since" not in options:
        pytest.skip("this tree has no `sonder build --since` yet")
    assert asked <= options


def test_serving_is_drained_one_pod_at_a_time() -> None:
    budgets = {
        one["metadata"]["name"]: one["spec"] for one in resources("base") if one["kind"] == "PodDisruptionBudget"
    }
    assert budgets["serving"]["maxUnavailable"] == 1
    assert cluster_specs("base")["RayService"]["workerGroupSpecs"][0]["minReplicas"] >= 2
    (serving,) = [pod for pod in pods("base") if pod.group == "serving"]
    assert serving.spec["terminationGracePeriodSeconds"] > 30  # the draining period of Serve's direct ingress


# -- environments --------------------------------------------------------------------------------------------------

MAY_DIFFER = re.compile(
    r"metadata/(name|namespace)$|/image$|externalName|serveConfigV2|/(min|max)?[rR]eplicas$|spec/schedule$"
    r"|data/sonder\.yaml|workerGroupSpecs/\d/rayStartParams/num-cpus$"
)
LOCAL_ONLY = re.compile(r"/resources/|/volumes/4|/volumeMounts/4|spec/suspend$|^NetworkPolicy/redis|^Service/redis")


OF_ONE_MACHINE = ["Deployment/valkey", "NetworkPolicy/valkey", "PersistentVolumeClaim/workspace"]
OF_MONITORING = [
    "NetworkPolicy/monitoring",
    "PodMonitor/sonder-gateways",
    "PodMonitor/sonder-ray",
    "PrometheusRule/sonder",
]


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
