"""Where torch's workers listen: on the address by which Ray knows their node."""

from __future__ import annotations

import os

import pytest
import ray

from pipelines import train_backend
from pipelines.train_backend import VARIABLE, interface_of, listen_on_own_address


def test_an_address_is_found_on_its_interface_and_a_foreign_one_on_none() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback is not None
    assert loopback.startswith("lo")
    assert interface_of("203.0.113.77") is None  # reserved for documentation


@pytest.mark.parametrize(("told", "expected"), [(None, "found"), ("bond0", "bond0")])
def test_the_interface_of_the_nodes_address_is_named_unless_somebody_named_one(
    told: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.setattr(train_backend, "interface_of", {"10.1.2.3": "found"}.get)
    monkeypatch.setenv(VARIABLE, told or "")
    if told is None:
        monkeypatch.delenv(VARIABLE)
    listen_on_own_address()
    assert os.environ[VARIABLE] == expected


def test_behind_address_translation_gloo_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")
    monkeypatch.delenv(VARIABLE, raising=False)
    listen_on_own_address()
    assert VARIABLE not in os.environ
