"""Validators of manifests: Kubernetes' own kinds by the strict schemas of kubernetes-validate, Ray's and Prometheus'
by those of infra/kubernetes/schema, and what KubeRay's controller refuses although its schema allows it.

Source: KubeRay v1.7.0, docs/reference/api.md and controllers/ray/utils/validation.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

from tests.infra.manifests import KUBERNETES

KUBERNETES_VERSION = "1.37"
SCHEMAS = {"ray.io/v1": "kuberay-1.7.0.json", "monitoring.coreos.com/v1": "prometheus-operator.json"}


def validate(manifest: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError for anything that the server would refuse, or prune in silence."""
    if manifest["apiVersion"] in SCHEMAS:
        _validator(SCHEMAS[manifest["apiVersion"]]).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@cache
def _validator(name: str) -> Any:
    schema = json.loads((KUBERNETES / "schema" / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    registry: Registry[Any] = Registry().with_resource(definitions["$id"], Resource.from_contents(definitions))
    return jsonschema.Draft202012Validator(schema, registry=registry)


def refusals(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's controller says of a resource that its schema takes; empty if nothing."""
    spec = manifest["spec"]
    job = spec.get("jobTemplate", spec)
    cluster = job.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    said = [*_of_job(job)] if manifest["kind"] in ("RayJob", "RayCronJob") else []
    if "headGroupSpec" in cluster:
        said += _of_cluster(cluster)
        if "upgradeStrategy" in cluster and manifest["kind"] != "RayCluster":
            said.append("upgradeStrategy is of clusters that no job or service makes")
    return said


def _of_cluster(cluster: dict[str, Any]) -> Iterator[str]:
    groups = {"head": cluster["headGroupSpec"]} | {one["groupName"]: one for one in cluster["workerGroupSpecs"]}
    if len(groups) != 1 + len(cluster["workerGroupSpecs"]):
        yield "two worker groups have one name"
    for name, group in groups.items():
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: autoscaler v2 wants restartPolicy Never"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"]):
            yield f"{name}: resources and rayStartParams both say what there is"
        if group.get("minReplicas", 0) > group.get("maxReplicas", 0) and name != "head":
            yield f"{name}: minReplicas above maxReplicas"
        environment = {one["name"] for one in group["template"]["spec"]["containers"][0].get("env", ())}
        if set(environment) & {"RAY_enable_autoscaler_v2", "REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}:
            yield f"{name}: variables that the operator sets by itself"
    if cluster.get("authOptions", {}).get("mode") == "token" and "rayVersion" not in cluster:
        yield "a token needs rayVersion"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in cluster:
            yield f"{gated} is behind a feature gate that is off"


def _of_job(job: dict[str, Any]) -> Iterator[str]:
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    seen: dict[tuple[str, str], int] = {}
    for rule in rules:
        condition = rule["condition"]
        when = condition.get("jobStatus") or f"deployment {condition['jobDeploymentStatus']}"
        if (when, rule["policy"]) in seen:
            yield f"two rules {rule['policy']} when {when}"
        seen[when, rule["policy"]] = condition.get("ttlSeconds", 0)
        if rule["policy"] == "DeleteWorkers" and job.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield "DeleteWorkers does not go with the autoscaler"
    for (when, policy), ttl in seen.items():
        if policy == "DeleteSelf" and ttl < seen.get((when, "DeleteCluster"), 0):
            yield f"{when}: the job goes before its cluster"
