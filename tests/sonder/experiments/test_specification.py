"""An experiment's file: what it may say, and what a mistake is answered with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sonder.core.errors import ConfigurationError
from sonder.experiments.specification import Experiment, read_experiment


def content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "new-encoder",
        "hypothesis": "the new encoder's recommendations are bought more",
        "arms": [{"name": "control"}, {"name": "treatment", "release": "r-2"}],
        "metrics": [
            {"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7},
            {"name": "hides", "kind": "count", "action": "hide", "within_days": 7, "wanted": "decrease"},
            {"name": "ctr", "kind": "ratio", "action": "click", "per": "view", "within_days": 7},
            {"name": "d7", "kind": "retention", "day": 7},
        ],
        "primary": "buyers",
        "guardrails": [{"metric": "hides", "margin": 0.05}],
        "minimum_effect": 0.03,
        **changes,
    }


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content()))
    experiment = read_experiment(tmp_path / "e.yaml")
    assert experiment.control.name == "control"
    assert (experiment.metric("d7").window_days, experiment.window_days) == (8, 8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": [{"name": "arm", "kind": "retention", "day": 1}], "primary": "arm"}, "a metric is named 'arm'"),
        ({"primary": "sales"}, "no metric is named 'sales', there are buyers, hides, ctr, d7"),
        ({"arms": [{"name": "a"}, {"name": "a", "release": "r"}]}, "two arms are named 'a'"),
        ({"arms": [{"name": "a"}, {"name": "b"}]}, "two arms are the same"),
        ({"arms": [{"name": "A b"}, {"name": "b"}]}, "arms.0.name: found the name 'A b'"),
        ({"ramp": [{"share": 0.5, "hours": 1}, {"share": 0.1, "hours": 1}]}, "expected shares that rise"),
        ({"share": 0.2, "ramp": [{"share": 0.5, "hours": 1}]}, "expected shares that rise to at most 0.2"),
        ({"eligibility": "lifecycle ="}, "eligibility"),
        ({"metrics": [{"name": "buyers", "kind": "conversion", "action": "buy"}]}, "needs `within_days`"),
        ({"metrics": [{"name": "buyers", "kind": "retention", "day": 1, "per": "view"}]}, "has no `per`"),
        ({"method": "interleave", "primary": "d7", "guardrails": []}, "expected one of an action"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"method": "interleave", "arms": [{"name": n, "release": n} for n in "abc"]}, "exactly two"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content(**changes)))
    with pytest.raises(ConfigurationError) as refused:
        read_experiment(tmp_path / "e.yaml")
    assert told in str(refused.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_what_is_no_experiment_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"e\.yaml"):
        read_experiment(tmp_path / "e.yaml")


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No file"):
        read_experiment(tmp_path / "none.yaml")


def test_the_whole_of_it_survives_json() -> None:
    experiment = Experiment.model_validate(content())
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
