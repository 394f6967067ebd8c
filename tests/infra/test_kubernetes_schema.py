"""infra/kubernetes: a server takes every manifest, and the check of that refuses what a server or controller would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.infra.manifests import (
    ENVIRONMENTS,
    named,
    resources,
)
from tests.infra.schemas import refusals, validate

EVERYWHERE = ["base", *ENVIRONMENTS]
FREE_MAPS = {  # whose keys are names of the user's
    "annotations", "clusterSelector", "labels", "limits", "matchLabels", "metadata", "rayStartParams", "requests",
}  # fmt: skip


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
