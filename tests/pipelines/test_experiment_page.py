"""The page of an analysis holds what the analysis says, and nothing else; names from files are no markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.experiment_page import render_analysis, told_p, word_of
from pipelines.terminal_experiment import show_analysis
from sonder.experiments.analysis import analyse
from sonder.experiments.results import Analysis
from sonder.experiments.specification import Experiment

START = datetime(2026, 3, 1, tzinfo=UTC)


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "ranker",
            "hypothesis": "it is <b>better</b>",
            "arms": [{"name": "control"}, {"name": "treatment", "release": "r-2"}],
            "metrics": [
                {"name": "bought", "kind": "conversion", "action": "buy", "within_days": 2},
                {
                    "name": "hides",
                    "kind": "count",
                    "action": "hide",
                    "within_days": 2,
                    "cap": 0.99,
                    "wanted": "decrease",
                },
            ],
            "primary": "bought",
            "guardrails": [{"metric": "hides", "margin": 0.2}],
            "minimum_effect": 0.1,
            **changes,
        }
    )


def users(effect: float, num: int = 12_000, share: float = 0.5) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    is_treated = rng.random(num) < share
    day = rng.integers(0, 10, num)
    return pl.DataFrame(
        {
            "user_id": [f"u{place}" for place in range(num)],
            "arm": np.where(is_treated, "treatment", "control"),
            "exposed_at": [START + timedelta(days=int(one)) for one in day],
            "bought": (rng.random(num) < np.where(is_treated, 0.3 * (1 + effect), 0.3)).astype(float),
            "bought.pre": (rng.random(num) < 0.3).astype(float),
            "hides": rng.poisson(0.8, num).astype(float),
            "hides.pre": rng.poisson(0.8, num).astype(float),
            "lifecycle": rng.choice(["new", "core", "casual"], num),
            "segment": rng.choice(["a", "b"], num),
        }
    ).with_columns(pl.col("exposed_at").cast(pl.Datetime("us", "UTC")))


def analysed(frame: pl.DataFrame) -> Analysis:
    counts = dict(frame.group_by("arm").len().iter_rows())
    return analyse(experiment(), frame, exposures_by_arm=counts, num_in_several=0, until=START + timedelta(days=14))


@pytest.fixture(scope="module")
def shipped() -> Analysis:
    return analysed(users(0.3))


def test_the_page_says_the_verdict_and_its_numbers(shipped: Analysis) -> None:
    page = render_analysis(experiment(), shipped, {"exposure rows": 12_345})
    assert shipped.verdict.decision == "ship"
    assert "Ship it: treatment" in page
    assert all(reason.split(" ")[0] in page for reason in shipped.verdict.reasons)
    assert "exposure rows: 12345" in page
    assert "<script" not in page
    assert "it is &lt;b&gt;better&lt;/b&gt;" in page


def test_its_drawings_are_well_formed(shipped: Analysis) -> None:
    page = render_analysis(experiment(), shipped, {})
    drawings = [part.split("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    names = [ET.fromstring(f"<svg{drawing}").get("class") for drawing in drawings]
    assert names == ["intervals", "overtime", "intervals", "intervals", "intervals"]


def test_the_same_analysis_gives_the_same_bytes(shipped: Analysis) -> None:
    assert render_analysis(experiment(), shipped, {}) == render_analysis(experiment(), shipped, {})


def test_a_broken_split_is_said_first() -> None:
    blocked = analysed(users(0.3, share=0.4))
    assert word_of(blocked) == "Blocked"
    assert "The split is broken" in render_analysis(experiment(), blocked, {})


def test_the_terminal_says_the_same(shipped: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    show_analysis(experiment(), shipped)
    told = capsys.readouterr().out
    assert "Ship it: treatment" in told
    assert "bought" in told


def test_small_p_values_are_not_told_as_zero() -> None:
    assert [told_p(value) for value in (None, 1e-9, 0.03)] == ["not known", "< 0.0001", "0.0300"]
