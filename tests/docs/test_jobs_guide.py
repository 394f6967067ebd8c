"""Every command of the guide to jobs is one that its own parser takes; what they do is tested where they are made."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pipelines.cli import app
from pipelines.job_environment import code_folders
from pipelines.job_work import COMMANDS, read_work
from sonder.core.config import validate

GUIDE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
LINES = re.findall(r"^sonder (.+?)(?:\s+#.*)?$", GUIDE, flags=re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guide names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sonder.yaml").write_text("events: {path: a.csv}\n", encoding="utf-8")
    for name in ("best.csv", "users.csv"):
        (tmp_path / name).write_text("user_id\nu1\n", encoding="utf-8")
    return tmp_path


def test_the_guide_has_commands() -> None:
    assert len(LINES) > 10


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_guide_is_taken_by_its_parser(line: str, place: Path) -> None:
    parser: Any = get_command(app)
    words = shlex.split(line)
    while hasattr(parser, "commands"):
        parser = parser.commands[words.pop(0)]
    context = parser.make_context("sonder", words)
    if line.startswith("submit "):
        work = read_work(context.params["words"], context.params["config"], context.params["overrides"] or ())
        assert line.split()[1] == work.command.split()[0]


def test_the_guide_lists_what_can_be_submitted_and_what_is_shipped() -> None:
    for command in COMMANDS:
        assert command in GUIDE
    for folder in code_folders():
        assert f"`{Path(folder).name}`" in GUIDE


def test_the_configuration_of_the_guide_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)
    config = validate({"events": {"path": "a.csv"}, **yaml.safe_load(block)}, source="docs/jobs.md")
    assert config.tracking.experiment == "shop"
