"""The configuration accepts what the documents show and refuses everything else with one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.config import SonderConfig, load, validate
from sonder.core.errors import ConfigurationError

PUBLISHED = """
workspace: ./workspace
events:
  path: ../shared/data/online_retail.parquet
  columns: {user_id: CustomerID, item_id: StockCode, timestamp: InvoiceDate, value: UnitPrice}
  action: buy
evaluation: {protocol: temporal, test_days: 30}
scores:
  - {name: buy_30d, action: buy, within_days: 30}
  - {name: churn_60d, churn: true, within_days: 60}
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "sonder.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_published_interface_is_accepted(tmp_path: Path) -> None:
    config = load(written(tmp_path, PUBLISHED))
    assert config.events.columns.user_id == "CustomerID"
    assert [task.name for task in config.scores] == ["buy_30d", "churn_60d"]


def test_an_override_reaches_its_section_and_is_typed(tmp_path: Path) -> None:
    config = load(written(tmp_path, PUBLISHED), ["encoder.dim=96", "events.max_bad_fraction=0.2"])
    assert (config.encoder.dim, config.events.max_bad_fraction) == (96, 0.2)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("encoder.dims=64", "encoder.dims"),
        ("encoder.dim=sixty", "encoder.dim"),
        ("encoder.dim", "section.key=value"),
        ("workspace.path=x", "is not a section"),
        ("scores=[{name: a, within_days: 3}]", "no kind, expected one of"),
        ("scores=[{name: a, churn: true, within_days: 3}, {name: a, churn: true, within_days: 4}]", "unique"),
        ("encoder.dim=[", "not YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named.replace(".", r"\.")):
        load(written(tmp_path, PUBLISHED), [override])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        load(written(tmp_path, text))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sonder init"):
        load(tmp_path / "absent.yaml")


def test_the_digest_follows_what_a_build_depends_on_and_nothing_else() -> None:
    def digest(**changes: object) -> str:
        return validate({"events": {"path": "a"}, **changes}, source="test").digest()

    assert digest() == digest(workspace="elsewhere", serving={"port": 9000}, audiences={"min_export_size": 5})
    assert digest() != digest(seed=8)
    assert digest() != digest(encoder={"dim": 32})


def test_the_configuration_guide_names_every_key() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    schema = SonderConfig.model_json_schema()
    keys = set(schema["properties"]).union(*(d.get("properties", {}) for d in schema["$defs"].values()))
    assert [key for key in sorted(keys) if f"`{key}`" not in guide] == []


def test_workers_are_a_number_or_the_least_before_the_most() -> None:
    raw = {"events": {"path": "log.csv"}}
    assert validate(raw | {"encoder": {"num_workers": [1, 4]}}, source="x").encoder.num_workers == (1, 4)
    with pytest.raises(ConfigurationError, match=r"num_workers.*found \[4, 1\], expected \[least, most\]"):
        validate(raw | {"encoder": {"num_workers": [4, 1]}}, source="x")


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://user@host/1", "valkey://[::1]:6379", "valkeys://h"])
def test_a_networked_store_is_named_by_its_url(tmp_path: Path, url: str) -> None:
    assert load(written(tmp_path, PUBLISHED), [f"serving.store={url}"]).serving.store == url


@pytest.mark.parametrize("url", ["host:6379", "http://host", "redis:///0", "unix:///tmp/socket", "lmdb"])
def test_what_is_no_url_of_a_store_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"serving.store.*expected redis://HOST:PORT/DB"):
        load(written(tmp_path, PUBLISHED), [f"serving.store={url}"])


@pytest.mark.parametrize(
    "url", ["redis://:hush@host/0", "redis://host/0?password=hush", "rediss://h?ssl_password=hush"]
)
def test_a_password_in_the_configuration_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="SONDER_STORE_PASSWORD") as refused:
        load(written(tmp_path, PUBLISHED), [f"serving.store={url}"])
    assert "hush" not in str(refused.value)


def test_one_path_in_a_list_is_that_path_so_that_both_name_the_same_snapshot() -> None:
    one, listed, two = (
        SonderConfig.model_validate({"events": {"path": path}}) for path in ("log", ["log"], ["log", "more"])
    )
    assert one.digest() == listed.digest() != two.digest()
    assert (one.events.paths, listed.events.paths, two.events.paths) == (("log",), ("log",), ("log", "more"))
