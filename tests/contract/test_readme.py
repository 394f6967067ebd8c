"""The README stays true: a row per package, links that lead somewhere, Make targets that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/architecture.md"]


def packages() -> set[str]:
    rooms = {f"libs/sonder/{path.parent.name}" for path in (ROOT / "libs/sonder").glob("*/__init__.py")}
    return rooms | {"pipelines", "services", "infra", "tests", "benchmarks", "docs"}


def test_the_readme_has_one_row_for_each_package_and_no_other() -> None:
    rows = re.findall(r"^\| \[([\w/]+)\]\(\1\)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(packages())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_readme_names_six_files_to_read() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Six files")[1].split("##")[0]
    assert re.findall(r"^(\d)\. \[", section, flags=re.MULTILINE) == list("123456")


def test_every_make_target_has_a_help_line() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE)
    documented = re.findall(r"^([a-z0-9-]+):.*## ", makefile, flags=re.MULTILINE)
    assert "help" in targets
    assert targets == documented


def test_nothing_tracked_names_a_machine() -> None:
    suspicious = re.compile(r"/root/|/home/\w+/|/work/")
    texts = [
        *ROOT.glob("*.*"),
        *(p for d in ("libs", "pipelines", "services", "docs", "infra", "benchmarks") for p in (ROOT / d).rglob("*")),
    ]
    found = [
        str(path.relative_to(ROOT))
        for path in texts
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json"}
        and suspicious.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
