"""The import directions of the design hold, and the check that says so can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = {"PYTHONPATH": f"{root / 'libs'}:{root}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("libs", "pipelines", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_tree_keeps_every_contract(copy: Path) -> None:
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout
    assert "5 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("libs/sonder/events/contract.py", "import sonder.history.timelines", "the floors of the library"),
        ("libs/sonder/interests/__init__.py", "import sonder.segments", "the floors of the library"),
        ("libs/sonder/core/ids.py", "import ray", "the library knows no Ray"),
        ("libs/sonder/encoder/__init__.py", "import httpx", "only the client speaks HTTP"),
        ("pipelines/cli.py", "import services.gateway", "pipelines and services stand beside each other"),
        ("services/scoring/__init__.py", "import services.embedding", "the gateway composes"),
    ],
)
def test_a_wrong_import_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    target = copy / file
    target.write_text(f"{target.read_text(encoding='utf-8')}\n{line}  # noqa\n", encoding="utf-8")
    result = lint_imports(copy)
    assert result.returncode == 1
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), result.stdout
