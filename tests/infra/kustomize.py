"""A strict reader of the part of kustomize that infra/kubernetes uses; what it does not know is an error.

Known: resources (files and folders), namespace, labels without selectors, images, configMapGenerator of files under
disableNameSuffixHash, patches (JSON 6902 with a target; strategic merge where no list meets a list that kustomize would
merge by key). test_kustomize.py holds it to the real program wherever that is installed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "labels", "images", "patches"}
_KNOWN |= {"generatorOptions", "configMapGenerator"}
_CLUSTER_WIDE = {"Namespace"}
_ATOMIC_LISTS = {("NetworkPolicy", "egress"), ("NetworkPolicy", "ingress")}


class Refused(Exception):
    """A kustomization that this reader does not understand, or that is wrong."""


def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization folder, as `kubectl kustomize` prints them; the order is the files'."""
    given = _documents(folder / "kustomization.yaml")[0]
    if unknown := set(given) - _KNOWN:
        raise Refused(f"{folder}: unknown {sorted(unknown)}")
    found: list[Resource] = []
    for name in given.get("resources", []):
        path = (folder / name).resolve()
        found += build(path) if path.is_dir() else _documents(path)
    found += _config_maps(folder, given)
    for patch in given.get("patches", []):
        _patch(found, _documents(folder / patch["path"]), patch)
    for resource in found:
        _label(resource, given.get("labels", []))
        _name_images(resource, given.get("images", []))
        _place(resource, given.get("namespace"))
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    if len(set(names)) != len(names):
        raise Refused(f"{folder}: the same resource twice")
    return found


def _documents(path: Path) -> list[Any]:
    # A dumped copy has no shared parts: kustomize writes anchors out before it patches.
    loaded = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one is not None]
    return [copy_without_sharing(one) for one in loaded]


def copy_without_sharing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copy_without_sharing(inner) for key, inner in value.items()}
    return [copy_without_sharing(inner) for inner in value] if isinstance(value, list) else value


def _config_maps(folder: Path, given: Resource) -> list[Resource]:
    maps = given.get("configMapGenerator", [])
    if maps and given.get("generatorOptions") != {"disableNameSuffixHash": True}:
        raise Refused(f"{folder}: names with a hash are not followed into Ray's resources")
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": one["name"]},
            "data": {Path(name).name: (folder / name).read_text(encoding="utf-8") for name in one["files"]},
        }
        for one in maps
    ]


def _patch(resources: list[Resource], documents: list[Any], patch: Resource) -> None:
    (document,) = documents
    if isinstance(document, list):
        wanted = (patch["target"]["kind"], patch["target"]["name"])
        operations = document
    else:
        wanted, operations = (document["kind"], document["metadata"]["name"]), None
    hit = [one for one in resources if (one["kind"], one["metadata"]["name"]) == wanted]
    if len(hit) != 1:
        raise Refused(f"{patch['path']} finds {len(hit)} resources {wanted}")
    if operations is None:
        _merge(hit[0], document, wanted[0])
    for operation in operations or ():
        _operate(hit[0], operation)


def _merge(target: Resource, change: Resource, kind: str) -> None:
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value, kind)
        elif isinstance(value, list) and key in target and (kind, key) not in _ATOMIC_LISTS:
            raise Refused(f"{kind}: whether kustomize merges the list {key} by a key is not known here")
        else:
            target[key] = copy.deepcopy(value)


def _operate(target: Any, operation: Resource) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    verb, value = operation["op"], copy.deepcopy(operation.get("value"))
    if isinstance(target, list):
        if verb != "add" or last != "-":
            raise Refused(f"{operation}: of lists only adding at the end")
        target.append(value)
    elif verb == "add" or (verb == "replace" and last in target):
        target[last] = value
    elif verb == "remove" and last in target:
        del target[last]
    else:
        raise Refused(f"{operation}: no such place")


def _label(resource: Resource, rules: list[Resource]) -> None:
    for rule in rules:
        if set(rule) != {"pairs"}:
            raise Refused("labels with selectors or templates")
        resource["metadata"].setdefault("labels", {}).update(rule["pairs"])


def _name_images(value: Any, rules: list[Resource]) -> None:
    if isinstance(value, list):
        for inner in value:
            _name_images(inner, rules)
    elif isinstance(value, dict):
        for key in ("containers", "initContainers"):
            for container in value.get(key) or ():
                container["image"] = _renamed(container["image"], rules)
        for inner in value.values():
            _name_images(inner, rules)


def _renamed(image: str, rules: list[Resource]) -> str:
    name, _, tag = image.partition(":")
    for rule in rules:
        if rule["name"] == name:
            name = rule.get("newName", name)
            if "digest" in rule:
                return f"{name}@{rule['digest']}"
            tag = rule.get("newTag", tag)
    return f"{name}:{tag}" if tag else name


def _place(resource: Resource, namespace: str | None) -> None:
    if namespace is None:
        return
    if resource["kind"] == "Namespace":
        resource["metadata"]["name"] = namespace
    elif resource["kind"] not in _CLUSTER_WIDE:
        resource["metadata"]["namespace"] = namespace
