"""What infra/kubernetes makes of each environment, and its parts: pods, references, the texts inside.

The labels that KubeRay gives its pods are added where selectors are matched (`operator_labels`): they are the
operator's, not the manifests'.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.infra.kustomize import Resource, build

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
ENVIRONMENTS = ("local", "staging", "production")


class Pod(NamedTuple):
    """A pod template and where it stands."""

    owner: str  # kind/name
    group: str  # head, the worker group, submitter, or the container's name
    template: Resource

    @property
    def spec(self) -> Resource:
        found: Resource = self.template["spec"]
        return found

    @property
    def container(self) -> Resource:
        found: Resource = self.spec["containers"][0]
        return found

    @property
    def is_ray_node(self) -> bool:
        return self.owner.startswith("Ray") and self.group != "submitter"

    @property
    def labels(self) -> dict[str, str]:
        """Its own labels and those that the operator gives it."""
        own = dict(self.template.get("metadata", {}).get("labels", {}))
        return {**own, **(operator_labels(self.group) if self.is_ray_node else {})}


def operator_labels(group: str) -> dict[str, str]:
    """What KubeRay labels the pods of a cluster with."""
    kind = "head" if group == "head" else "worker"
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/group": group}


@cache
def resources(environment: str) -> tuple[Resource, ...]:
    folder = KUBERNETES / ("base" if environment == "base" else f"overlays/{environment}")
    return tuple(build(folder))


def named(environment: str, kind: str, name: str | None = None) -> Resource:
    (found,) = [r for r in resources(environment) if r["kind"] == kind and name in (None, r["metadata"]["name"])]
    return found


def cluster_specs(environment: str) -> dict[str, Resource]:
    """The Ray clusters, by the kind that asks for them."""
    return {
        "RayCluster": named(environment, "RayCluster")["spec"],
        "RayCronJob": named(environment, "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"],
        "RayService": named(environment, "RayService")["spec"]["rayClusterConfig"],
    }


def pods(environment: str) -> list[Pod]:
    return [pod for resource in resources(environment) for pod in _pods(resource)]


def _pods(resource: Resource) -> Iterator[Pod]:
    owner = f"{resource['kind']}/{resource['metadata']['name']}"
    spec = resource.get("spec", {})
    if resource["kind"] == "Deployment":
        yield Pod(owner, spec["template"]["spec"]["containers"][0]["name"], spec["template"])
    job = spec.get("jobTemplate", spec)
    if "submitterPodTemplate" in job:
        yield Pod(owner, "submitter", job["submitterPodTemplate"])
    cluster = job.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if "headGroupSpec" in cluster:
        yield Pod(owner, "head", cluster["headGroupSpec"]["template"])
        yield from (Pod(owner, one["groupName"], one["template"]) for one in cluster["workerGroupSpecs"])


def serve_config(environment: str) -> Any:
    return yaml.safe_load(named(environment, "RayService")["spec"]["serveConfigV2"])


def secret_references(value: Any) -> Iterator[tuple[str, str]]:
    """(secret, key) wherever something refers to one."""
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "secretName" in value:  # of authOptions, whose key KubeRay names
            yield value["secretName"], "auth_token"
        for inner in value.values():
            yield from secret_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secret_references(inner)


def selects(selector: dict[str, Any], pod: Pod) -> bool:
    return set(selector.get("matchLabels", {}).items()) <= set(pod.labels.items())
