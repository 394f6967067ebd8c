"""docs/releases.md, run as written: its consumers file, its commands in their order, its words on what they do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from sonder.core.errors import PromotionRefused
from sonder.core.workspace import Workspace
from sonder.releases.consumers import Requirement
from sonder.releases.registry import Registry
from tests.sealed import TASK, seal_release

GUIDE = (Path(__file__).parents[2] / "docs" / "releases.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's consumers file; r-1 served, r-2 worse, r-3 better, each measured against r-1."""
    monkeypatch.chdir(tmp_path)
    config = {"workspace": "./workspace", "events": {"path": "log.csv"}, "scores": [TASK]}
    (tmp_path / "sonder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (yaml_block,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "consumers.yaml").write_text(yaml_block, encoding="utf-8")
    workspace = Workspace.at(str(tmp_path / "workspace"))
    overlap = {"stability.neighbour_overlap_at_50": 0.7}
    for name, auc in (("r-1", 0.75), ("r-2", 0.73), ("r-3", 0.76)):
        seal_release(workspace, name, metrics={"scores.buy_7d.auc": auc, **overlap}, parent="r-1")
    Registry(workspace).promote("r-1", reason="first")
    return tmp_path


def test_the_commands_do_what_the_guide_says(place: Path) -> None:
    ended = {}
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        assert words[0] == "sonder"
        told = CliRunner().invoke(app, words[1:], env={"COLUMNS": "200"})
        ended[" ".join(words[2:])] = told
        assert told.exception is None or isinstance(told.exception, SystemExit | PromotionRefused), told.exception
    status = {command: told.exit_code for command, told in ended.items()}
    assert status.pop("check r-2") == 1
    assert status.pop("promote r-2") == 1
    assert set(status.values()) == {0}
    assert "ads ranking, ads-oncall@example.org" in str(ended["promote r-2"].exception)
    current = json.loads((place / "workspace" / "releases" / "CURRENT").read_text(encoding="utf-8"))
    assert current["release"] == "r-3"
    assert [entry["reason"] for entry in current["forced"]] == ["r-1 scores erased users"]
    for written in ("check.json", "diff.json", "diff.html"):
        assert (place / written).stat().st_size > 500


def test_the_guide_names_every_key_of_a_requirement() -> None:
    for key in Requirement.model_fields:
        assert f"`{key}" in GUIDE or f"{{{key}:" in GUIDE, key


def test_thirty_falls_of_one_percent_add_up_as_the_guide_says() -> None:
    assert f"{100 * (1 - 0.99**30):.0f} %" in GUIDE
