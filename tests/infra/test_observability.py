"""What infra/observability holds is loaded and held against the code: a name that nobody measures is a blind panel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sonder.core.metrics import PREFIX, metric_names

FOLDER = Path(__file__).parents[2] / "infra" / "observability"


def loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (rule["expr"] for group in loaded("alerts.yaml")["groups"] for rule in group["rules"])


@pytest.mark.parametrize("kind", ["receivers", "processors", "exporters"])
def test_the_collector_uses_exactly_what_it_defines(kind: str) -> None:
    collector = loaded("collector.yaml")
    used = {name for pipeline in collector["service"]["pipelines"].values() for name in pipeline[kind]}
    assert used == set(collector[kind])
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])


def test_the_collector_listens_on_loopback_alone() -> None:
    endpoints = re.findall(r"endpoint: (\S+)", (FOLDER / "collector.yaml").read_text(encoding="utf-8"))
    assert len(endpoints) == 4
    assert all(endpoint.startswith("127.0.0.1:") for endpoint in endpoints)


def test_the_memory_limiter_comes_first_in_every_pipeline() -> None:
    for pipeline in loaded("collector.yaml")["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_every_metric_that_dashboard_and_alerts_name_is_measured() -> None:
    named = {name for expression in expressions() for name in re.findall(rf"\b{PREFIX}\w+", expression)}
    assert named
    assert named <= metric_names()


def test_every_metric_that_is_measured_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metric_names()}
    assert {family for family in families if family not in shown} == set()


def test_every_expression_names_only_labels_that_its_metric_has() -> None:
    from sonder.core.metrics import REGISTRY

    names = list(REGISTRY._names_to_collectors.values())
    known = {label for metric in names for label in getattr(metric, "_labelnames", ())} | {"le", "instance"}
    for expression in expressions():
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        filtered = re.findall(r"[{,]\s*(\w+)\s*=~?", expression)
        assert {label.strip() for group in grouped for label in group.split(",")} | set(filtered) <= known, expression


def test_panels_have_their_own_ids_and_places() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in panels()})
