"""The reader of tests/infra/kustomize.py: strict, and like the real program where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.kustomize import Refused, build
from tests.infra.manifests import ENVIRONMENTS, KUBERNETES, resources


def by_name(found: Any) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed")
@pytest.mark.parametrize("environment", ["base", *ENVIRONMENTS])
def test_the_reader_makes_what_kubectl_kustomize_makes(environment: str) -> None:
    folder = KUBERNETES / ("base" if environment == "base" else f"overlays/{environment}")
    printed = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True).stdout
    theirs = by_name(yaml.safe_load_all(printed))
    ours = by_name(resources(environment))
    assert ours.keys() == theirs.keys()
    for name, resource in ours.items():
        assert resource == theirs[name], name


def kustomization(folder: Path, **content: Any) -> Path:
    (folder / "one.yaml").write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}", encoding="utf-8"
    )
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["one.yaml"], **content}), encoding="utf-8")
    return folder


def test_a_feature_that_the_reader_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="replacements"):
        build(kustomization(tmp_path, replacements=[]))


def test_a_generated_name_with_a_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="hash"):
        build(kustomization(tmp_path, configMapGenerator=[{"name": "b", "files": ["one.yaml"]}]))


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ("{kind: Service, metadata: {name: b}}", "finds 0"),
        ("{kind: Service, metadata: {name: a}, spec: {ports: [{port: 2}]}}", "merges the list ports"),
        ("[{op: replace, path: /spec/absent, value: 1}]", "no such place"),
        ("[{op: add, path: /spec/ports/0, value: 1}]", "adding at the end"),
    ],
)
def test_a_patch_that_finds_nothing_or_is_ambiguous_is_refused(tmp_path: Path, patch: str, told: str) -> None:
    (tmp_path / "patch.yaml").write_text(patch, encoding="utf-8")
    patches = [{"path": "patch.yaml", "target": {"kind": "Service", "name": "a"}}]
    with pytest.raises(Refused, match=told):
        build(kustomization(tmp_path, patches=patches))


def test_a_patch_of_an_anchored_part_changes_that_place_alone(tmp_path: Path) -> None:
    folder = kustomization(tmp_path, patches=[{"path": "patch.yaml", "target": {"kind": "Service", "name": "a"}}])
    (folder / "one.yaml").write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {x: &shared [1], y: *shared}}", encoding="utf-8"
    )
    (folder / "patch.yaml").write_text("[{op: add, path: /spec/x/-, value: 2}]", encoding="utf-8")
    (made,) = build(folder)
    assert made["spec"] == {"x": [1, 2], "y": [1]}
