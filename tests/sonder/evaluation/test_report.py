"""The page: complete, self-contained, the same bytes for the same content, and deaf to what the data tries to say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from sonder.core.storage import Folder
from sonder.evaluation.affinity import AffinityQuality
from sonder.evaluation.classification import CalibrationPoint
from sonder.evaluation.evaluate import RetrievalEvaluation
from sonder.evaluation.health import embedding_health
from sonder.evaluation.reach_chart import ReachFacts, ReachRow
from sonder.evaluation.report import render, write_report
from sonder.evaluation.report_content import (
    AffinityFacts,
    ClusterFacts,
    ClusterPortrait,
    DataFacts,
    EmbeddingSample,
    InterestFacts,
    LifecycleFacts,
    ReportContent,
    RetrievalFacts,
    ScoreFacts,
    Story,
    StoryEvent,
    StoryInterest,
    StoryLeaning,
    StoryScore,
)
from sonder.evaluation.slices import LENGTHS
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.overview import LifecycleOverview
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import random_log, timelines_of

EVIL = "<script>alert('x')</script><img src=\"http://evil.example/x.png\" onerror=go()>"
MODELS = {"encoder": 0.5, "popularity": 0.25, "item_knn": 0.375}
NAMES = ("hr_at_10", "ndcg_at_10", "hr_at_10_unseen", "ndcg_at_10_unseen", "p90_coverage_at_10")


REACH = ReachFacts(
    "buy", 7, "2025-02-01", 90, 60, 40, 1_000, 100, 0.8, 0.02, "five folds",
    [ReachRow(2, 0.9, 0.05, 0.5, 0.1, 10.0, 0.6, 0.1, 0.8), ReachRow(20, 0.4, 0.5, 0.9, 0.1, 1.8, 0.25, 0.05, 0.3)],
)  # fmt: skip
QUALITY = AffinityQuality(1, 8, 40, 90, 0.0123, 0.05, 0.0987, 0.09, (CalibrationPoint(0.2, 0.25, 90),))


def content_of(word: str) -> ReportContent:
    """A report in which every text that comes from data is `word`."""
    health = {
        "users_with_targets": 40,
        "users_scored": 40,
        "users_unseen": 30,
        "users_cold": 3,
        "sampling": None,
        "pairs_wanted": 60,
        "pairs_unwanted": 1_500,
        "vectors": {"users": embedding_health(np.ones((30, 4), np.float32) / 2)},
        "warnings": ["Users: collapsed."],
        "slices": {
            "hr_at_10_by_knowledge": [{"name": "cold", "num": 3, **MODELS}],
            "hr_at_10_by_history_length": [{"name": name, "num": 20, **MODELS} for name, _, _ in LENGTHS],
            "recall_at_10_by_item": [{"name": "0", "num": 7, **MODELS}],
        },
    }
    metrics = {f"retrieval.{model}.{name}": value for model, value in MODELS.items() for name in NAMES}
    return ReportContent(
        title=word,
        release_id="r-1",
        created_at="2026-01-01T00:00:00+00:00",
        data=DataFacts(
            source=word,
            rows_read=120,
            events=100,
            users=50,
            items=20,
            quarantined=20,
            by_reason={"bad_timestamp": 20},
            first_event="2025-01-01",
            last_event="2025-02-01",
            is_ordinal=False,
            events_per_week=[("2024-12-30", 60), ("2025-01-06", 40)],
        ),
        retrieval=RetrievalFacts(RetrievalEvaluation(metrics, health), "temporal", "2025-01-20", 12),
        scores=[ScoreFacts("buy_30d", word, "2025-01-20", None, reason=word)],
        lifecycle=LifecycleFacts("2025-02-01", {"new": 10, "dormant": 40}, {"new": word, "dormant": word}, None),
        clusters=ClusterFacts(
            [ClusterPortrait(7, word, 49, {"new": 9, "dormant": 40}, [(word, 0.5, 2.0)])],
            1,
            "stable",
            [(2, 0.5, 0.4), (3, 0.4, 0.2)],
            50,
            "r-0",
            40,
            0.9,
            0.1,
            "kept",
            (5, 6),
        ),
        embedding=EmbeddingSample(
            np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32), ["new"] * 50, [word] * 50
        ),
        interests=InterestFacts(50, 2.0, [(word, 30, 0.5)], {"new": 100}, has_categories=True),
        stories=[
            Story(
                word,
                "new",
                3,
                "2025-01-01",
                "2025-02-01",
                [StoryEvent("2025-02-01 10:00", word, word, word)],
                [StoryInterest(word, word, 0.5, "new", 3)],
                [StoryScore(word, word, word, [word])],
                word,
                [StoryLeaning(word, 0.5, 2.0, is_refused=False)],
                [StoryLeaning(word, 0.01, 0.25, is_refused=True)],
                [(word, word)],
                [(word, False)],
                [word],
            )
        ],
        artefacts=[],
        limits=[word],
        missing={},
        config={"events": {"path": word}},
        config_digest="0" * 16,
        affinity=AffinityFacts([(word, 0.25, 7, 3)], [QUALITY], is_learned=True, horizon_days=12),
        reach=replace(REACH, action=word),
        stability=stability_of(word),
    )


def stability_of(word: str) -> dict[str, Any]:
    """What pipelines.stability writes of a build with a parent."""
    moved = {"users": 90, "mean": 0.8, "quantiles": {"p05": 0.41, "p50": 0.87}, "moved": 0.25}
    overlap = {"users": 90, "candidates": 500, "share": 0.62, "by_chance": 0.1}
    psi = {"psi": 0.31, "users": [90, 90], "mean": [0.125, 0.5]}
    return {
        "parent": word,
        "users": 90,
        "moment": "2011-11-09T00:00:00Z",
        "as_of": "2011-12-09T00:00:00Z",
        "metrics": {
            "stability.shared_items": 480.0,
            "stability.item_alignment_cosine": 0.91,
            "stability.item_alignment_cosine_raw": 0.02,
        },
        "movement": {"same_moment": moved, "raw": {**moved, "quantiles": {"p05": -0.3, "p50": -0.1}}},
        "overlap": {"neighbour_overlap_at_50": overlap},
        "churn": {"cluster_churn": {"users": 90, "share": 0.2, "moves": [[word, "4", 18]]}},
        "scores": {word: {"score_psi": psi}},
        "audiences": {word: {"before": 40, "after": 50, "both": 30, "share": 0.5}},
        "audiences_not_compared": {word: word},
    }


class Elements(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_the_data_says_stays_text() -> None:
    harmless, evil = Elements(render(content_of("word"))), Elements(render(content_of(EVIL)))
    assert evil.tags == harmless.tags
    assert [name for name, _ in evil.attributes] == [name for name, _ in harmless.attributes]
    assert "alert('x')" in "".join(evil.text)


def test_the_page_asks_nothing_of_the_network_and_runs_nothing() -> None:
    page = Elements(render(content_of("word")))
    assert not {"script", "iframe", "link", "object", "embed"} & set(page.tags)
    loads = [value for name, value in page.attributes if name in ("src", "href", "action", "xlink:href")]
    assert loads
    assert all(value.startswith("#") for value in loads)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


def test_the_same_content_gives_the_same_bytes_and_the_flat_metrics(tmp_path) -> None:
    content = content_of("word")
    metrics = write_report(Folder.at(str(tmp_path)), content)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == render(content) == render(content)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["retrieval.encoder.hr_at_10"] == 0.5
    assert metrics["data.quarantined"] == 20


def test_where_the_clusters_started_is_told_beside_what_moved() -> None:
    text = " ".join(" ".join(Elements(render(content_of("word"))).text).split())
    assert "They start where the users of its clusters lie now. Ids that are gone: 5, 6." in text


def test_lengths_of_history_stand_in_their_order() -> None:
    text = [part.strip() for part in Elements(render(content_of("word"))).text]
    lengths = [name for name, _, _ in LENGTHS]
    slices = [part for part in text if part in lengths]
    assert slices[-6:] == lengths
    assert "By how well the item was known" in text
    assert "By lifecycle" not in text  # it was not measured


def test_cold_users_have_a_row_of_their_own_and_the_table_says_what_they_are_served() -> None:
    text = " ".join(Elements(render(content_of("word"))).text)
    assert "By what is known of the user" in text
    assert "is served the items with most events" in text


def test_the_hide_rate_stands_beside_recall_and_is_absent_where_nothing_was_refused() -> None:
    content = content_of("word")
    rates = {"hide_rate_at_10": 0.125, "recall_at_10": 0.25, "hide_lift_at_10": 0.5}
    metrics = {f"retrieval.{model}.{name}": rate for model in MODELS for name, rate in rates.items()}
    text = " ".join(Elements(render(with_metrics(content, metrics))).text)
    assert "What users did not want" not in " ".join(Elements(render(content)).text)
    for told in ("Of 1,500 items", "0.5 times as likely", "0.1250", "hide rate@10"):
        assert told in text
    nothing_found = {name: rate for name, rate in metrics.items() if "lift" not in name}
    text = " ".join(Elements(render(with_metrics(content, nothing_found))).text)
    assert "the encoder had suggested 188 ( 12.5 % )" in re.sub(r"\s+", " ", text)
    assert "times as likely" not in text


def with_metrics(content: ReportContent, metrics: dict[str, float]) -> ReportContent:
    evaluation = replace(content.retrieval.evaluation, metrics=content.retrieval.evaluation.metrics | metrics)
    return replace(content, retrieval=replace(content.retrieval, evaluation=evaluation))


def test_a_collapsed_space_is_said_to_be_one() -> None:
    content = content_of("word")
    assert "Users: collapsed." in " ".join(Elements(render(content)).text)
    health = content.retrieval.evaluation.health | {"warnings": []}
    sound = replace(content.retrieval, evaluation=replace(content.retrieval.evaluation, health=health))
    text = " ".join(Elements(render(replace(content, retrieval=sound))).text)
    assert "neither the users' nor the items' vectors have collapsed" in text


def test_the_calibration_of_affinities_stands_beside_the_naive_share_with_its_protocol() -> None:
    text = re.sub(r"\s+", " ", " ".join(Elements(render(content_of("word"))).text))
    assert "0.0123 0.0987 0.0500 0.0900" in text
    assert "Protocol temporal, cutoff 2025-01-20" in text


def test_the_reach_of_a_lookalike_stands_with_its_protocol_and_how_many_were_looked_at() -> None:
    content = content_of("word")
    text = told_of(content)
    for told in (
        "60 of them, drawn by a digest of their id, are the seeds",
        "Only the first 100 of 1,000 users were looked at",
        "Held out, five folds. AUC 0.800 ± 0.020",
        "was not drawn counts as a miss",
    ):
        assert told in text
    everybody = told_of(replace(content, reach=replace(REACH, num_seeds=90, num_looked_at=1_000)))
    assert "all of them are the seeds" in everybody
    assert "looked at" not in everybody
    assert "was not drawn" not in everybody
    absent = replace(content, reach=None, missing={"lookalike": "7 users did"})
    assert "7 users did" in told_of(absent)


def test_a_story_tells_leanings_with_share_and_lift_and_what_the_user_agreed_to() -> None:
    text = told_of(content_of("word"))
    assert "word 50.0 %, 2.00 times refused word 1.0 %, 0.25 times" in text
    assert "word: word; consent: word no" in text


def told_of(content: ReportContent) -> str:
    return re.sub(r"\s+", " ", " ".join(Elements(render(content)).text)).replace(" .", ".")


def test_what_moved_since_the_parent_says_what_was_compared() -> None:
    content = content_of("word")
    text = told_of(content)
    assert "90 users of this release and of its parent word" in text
    assert "both read the events before 2011-11-09" in text
    assert "by 480 items that both releases have learnt: mean cosine 0.910, before 0.020" in text
    assert "Training alone 0.870 0.410 25.0 %" in text
    assert "as published 90 20.0 % word to 4 18" in text
    assert "not measured 0.310 another population 0.125 to 0.500" in text
    assert "40 then, 50 now 50.0 % 30 in both" in text
    assert "width:0.00%" in render(content)  # a negative cosine has no bar, not a broken one
    first = replace(content, stability=None, missing={"stability": "No release is served yet."})
    assert "No release is served yet." in told_of(first)


def test_what_was_not_made_is_said_with_its_reason() -> None:
    missing = {name: f"no {name} here" for name in ("retrieval", "lifecycle", "embedding", "interests", "stories")}
    bare = replace(
        content_of("word"), retrieval=None, lifecycle=None, embedding=None, interests=None, stories=[], missing=missing
    )
    text = " ".join(Elements(render(bare)).text)
    for reason in missing.values():
        assert reason in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_published(tmp_path, value: float) -> None:
    content = content_of("word")
    evaluation = replace(content.retrieval.evaluation, metrics={"retrieval.encoder.hr_at_10": value})
    odd = replace(content, retrieval=replace(content.retrieval, evaluation=evaluation))
    assert "retrieval.encoder.hr_at_10" not in write_report(Folder.at(str(tmp_path)), odd)


def test_growth_is_drawn_with_its_unfinished_periods_marked_and_both_errors_told() -> None:
    timelines = timelines_of(random_log(4, num_users=80, num_items=2, num_days=103))
    thresholds = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)
    empty = LifecycleOverview.empty(0, 103 * MICROSECONDS_PER_DAY, thresholds)
    overview = empty.count(timelines.offsets, timelines.times_us)
    page = render(replace(content_of("x"), lifecycle=LifecycleFacts("1970-04-14", overview.mix, {}, overview)))
    for title in ("States over time", "Growth per 7 days", "Where users went", "cohorts by week", "The mix in 28 days"):
        assert title in page
    assert not overview.cohorts.is_last_finished  # 13 cohorts are shown; the running one has no later week yet
    assert page.count('<td class="so-far"') == int((overview.cohorts.sizes_C[-13:-1] > 0).sum()) > 3
    assert "mean absolute error per state" in page
    assert ">nan" not in page
    missing = render(replace(content_of("x"), missing={"growth": "The log has an order and no dates."}))
    assert "The log has an order and no dates." in missing
