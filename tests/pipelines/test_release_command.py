"""`sonder release check | promote`, `sonder build --promote`: what they print, their exit status, what they record."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.promotion import operator
from pipelines.terminal import console
from sonder.core.config import load
from sonder.core.errors import ConfigurationError, InvalidRequest, NotFound, PromotionRefused
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry
from tests.sealed import TASK, seal_release

ROOT = Path(__file__).parents[2]
CONSUMERS = {
    "consumers": [
        {"name": "ads", "owner": "ads-oncall", "requires": [{"metric": "scores.buy_7d.auc", "may_fall": "1%"}]},
        {"name": "feed", "needs": ["embedding", "scores.buy_7d"]},
    ]
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """sonder.yaml and consumers.yaml; r-1 served, r-2 worse, r-3 better."""
    config = {"workspace": str(tmp_path / "workspace"), "events": {"path": "log.csv"}, "scores": [TASK]}
    (tmp_path / "sonder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "consumers.yaml").write_text(yaml.safe_dump(CONSUMERS), encoding="utf-8")
    workspace = Workspace.at(str(tmp_path / "workspace"))
    for name, auc in (("r-1", 0.75), ("r-2", 0.73), ("r-3", 0.76)):
        seal_release(workspace, name, metrics={"scores.buy_7d.auc": auc})
    Registry(workspace).promote("r-1", reason="first")
    return tmp_path


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console keeps the width that it found when somebody first imported it, in whatever test that was."""
    monkeypatch.setattr(console, "_width", 200)
    monkeypatch.setattr(console, "_height", 50)


def run(place: Path, *arguments: str, raises: bool = False) -> Result:
    told = CliRunner().invoke(app, [*arguments, "-c", str(place / "sonder.yaml")], env={"COLUMNS": "200"})
    if not raises and told.exception is not None and not isinstance(told.exception, SystemExit):
        raise told.exception
    return told


def served(place: Path) -> str:
    current = Registry(Workspace.at(str(place / "workspace"))).current()
    assert current is not None
    return current.release


def test_check_shows_each_promise_and_says_what_would_become_of_it(place: Path) -> None:
    told = run(place, "release", "check", "r-2")
    assert told.exit_code == 1
    assert "r-2 against r-1" in told.output
    assert "2 of 3 promises are kept: a promotion would be refused." in told.output
    assert "-2.67 %" in told.output
    assert run(place, "release", "check", "r-3").exit_code == 0
    assert served(place) == "r-1"


def test_check_of_no_named_release_is_of_the_newest_and_its_json_says_the_same(place: Path) -> None:
    seal_release(Workspace.at(str(place / "workspace")), "r-4", metrics={"scores.buy_7d.auc": 0.5})
    newest = Registry(Workspace.at(str(place / "workspace"))).newest().id
    assert newest in run(place, "release", "check").output
    run(place, "release", "check", "r-2", "--json", str(place / "findings.json"))
    content = json.loads((place / "findings.json").read_text(encoding="utf-8"))
    assert (content["release"], content["against"], content["would_refuse"]) == ("r-2", "r-1", True)
    assert [finding["status"] for finding in content["findings"]] == ["broken", "kept", "kept"]


def test_check_compares_with_any_release(place: Path) -> None:
    told = run(place, "release", "check", "r-1", "--against", "r-2")
    assert (told.exit_code, "+2.74 %" in told.output) == (0, True)
    with pytest.raises(NotFound, match="r-9"):
        run(place, "release", "check", "r-1", "--against", "r-9")


def test_promote_refuses_and_force_records(place: Path) -> None:
    with pytest.raises(PromotionRefused, match="ads"):
        run(place, "release", "promote", "r-2")
    assert served(place) == "r-1"
    told = run(place, "release", "promote", "r-2", "--force", "--reason", "the old one leaks", "--by", "night shift")
    assert told.exit_code == 0
    assert "Forced by night shift, with 1 of 3 promises broken" in told.output
    content = json.loads((place / "workspace" / "releases" / "CURRENT").read_text(encoding="utf-8"))
    assert content["gate"]["by"] == "night shift"
    assert content["reason"] == "the old one leaks"
    assert content["gate"]["overridden"][0].startswith("ads (owner: ads-oncall): scores.buy_7d.auc was 0.7500")
    assert "served, forced by night shift" in run(place, "release", "list").output


def test_force_is_signed_with_the_account_if_nobody_is_named(place: Path) -> None:
    run(place, "release", "promote", "r-2", "--force", "--reason", "must")
    content = json.loads((place / "workspace" / "releases" / "CURRENT").read_text(encoding="utf-8"))
    assert content["gate"]["by"] == operator()


@pytest.mark.parametrize("arguments", [["--force"], ["--force", "--reason", " "], ["--by", "me"]])
def test_force_needs_a_reason_and_a_signature_needs_force(place: Path, arguments: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        run(place, "release", "promote", "r-2", *arguments)
    assert served(place) == "r-1"


def test_promote_says_which_promises_it_kept(place: Path) -> None:
    assert "All 3 promises to consumers are kept, compared with r-1." in run(place, "release", "promote", "r-3").output
    run(place, "release", "rollback")
    assert served(place) == "r-1"


def test_no_consumers_file_means_no_gate(place: Path) -> None:
    (place / "consumers.yaml").unlink()
    assert run(place, "release", "check", "r-2").exit_code == 0
    assert "promises" not in run(place, "release", "promote", "r-2").output


def test_the_key_names_another_file_and_a_file_beside_the_configuration_is_found(place: Path) -> None:
    assert load(place / "sonder.yaml").consumers == str(place / "consumers.yaml")
    (place / "other.yaml").write_text("consumers: []", encoding="utf-8")
    assert run(place, "release", "check", "r-2", "--set", f"consumers={place / 'other.yaml'}").exit_code == 0
    with pytest.raises(ConfigurationError, match="No consumers file"):
        run(place, "release", "promote", "r-2", "--set", "consumers=/nowhere.yaml")


def test_a_metric_that_no_release_has_is_the_fault_of_the_file(place: Path) -> None:
    wrong = {"consumers": [{"name": "ads", "requires": [{"metric": "scores.buy_7.auc", "may_fall": "1%"}]}]}
    (place / "consumers.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"near: scores\.buy_7d\.auc"):
        run(place, "release", "check", "r-2")
    with pytest.raises(ConfigurationError, match=r"near: scores\.buy_7d\.auc"):
        run(place, "release", "promote", "r-2")


@pytest.mark.parametrize(("made", "status", "then"), [("r-2", 3, "r-1"), ("r-3", 0, "r-3")])
def test_a_build_that_is_not_to_be_promoted_is_made_and_says_so_by_its_exit_status(
    place: Path, monkeypatch: pytest.MonkeyPatch, made: str, status: int, then: str
) -> None:
    monkeypatch.setattr("pipelines.build.build", lambda config: made)
    told = run(place, "build", "--promote")
    assert told.exit_code == status
    assert served(place) == then
    assert f"Release {made}" in told.output
    assert ("Promotion is refused" in told.output) == (status == 3)


def test_a_wrong_consumers_file_stops_a_build_before_it_starts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "consumers.yaml").write_text("consumers: [{name: ads}]", encoding="utf-8")
    monkeypatch.setattr("pipelines.build.build", lambda config: pytest.fail("it was built"))
    with pytest.raises(ConfigurationError, match="relies on nothing"):
        run(place, "build")


def test_the_first_release_of_a_workspace_is_served_whatever_it_keeps(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "workspace" / "releases" / "CURRENT").unlink()
    monkeypatch.setattr("pipelines.build.build", lambda config: "r-2")
    assert run(place, "build").exit_code == 0
    assert served(place) == "r-2"


@pytest.mark.parametrize("folder", ["pipelines", "services", "libs"])
def test_every_promotion_goes_through_the_gate(folder: str) -> None:
    """A call of a registry's `promote` without `gate=` would serve what consumers refuse."""
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "promote":
                found.append((file.name, {keyword.arg for keyword in node.keywords}))
    assert [name for name, keywords in found if "gate" not in keywords] == []
    assert folder != "pipelines" or "promotion.py" in {name for name, _ in found}
