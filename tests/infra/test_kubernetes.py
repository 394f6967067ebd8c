"""infra/kubernetes: pods keep the rules of the house, what is referred to exists, and who reaches whom is said."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from services.gateway.proxy import proxy_environment
from tests.infra.manifests import (
    ENVIRONMENTS,
    ROOT,
    Pod,
    cluster_specs,
    named,
    pods,
    resources,
    secret_references,
    selects,
    serve_config,
)

EVERYWHERE = ["base", *ENVIRONMENTS]
ALL_PODS = [pytest.param(e, pod, id=f"{e}-{pod.owner}-{pod.group}") for e in ENVIRONMENTS for pod in pods(e)]


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
