"""The page of two releases: what it says, what it may not do, and that its drawings are of the numbers."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import polars as pl
import pyarrow as pa
import pytest

from sonder.core.workspace import Workspace
from sonder.evaluation.diff_charts import MOST_GROUPS, cosine_chart, flow_chart, overlay_chart, pairs_chart
from sonder.evaluation.diff_page import psi_word, render_diff
from sonder.evaluation.user_comparison import Flow, UserComparison, compare_users
from sonder.releases.artefacts import Release
from sonder.releases.consumers import Consumers
from sonder.releases.differences import Differences, compare
from sonder.releases.facts import read_facts
from sonder.releases.gate import Verdict, judge
from tests.sealed import draw_profiles, seal_release

HOSTILE = '<script>alert("x")</script>'
CONSUMERS = {
    "consumers": [
        {"name": "ads", "owner": f"ads {HOSTILE}", "requires": [{"metric": "scores.buy_7d.auc", "may_fall": "1%"}]},
        {"name": "feed", "needs": ["embedding"]},
    ]
}


def columns(profiles: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(profiles)
    assert isinstance(frame, pl.DataFrame)
    segments = pl.col("segments").struct
    fields = [segments.field(name) for name in ("lifecycle", "cluster_id", "cluster")]
    return frame.select(
        "user_id", *fields, pl.col("interests").list.len().alias("num_interests"), "scores", "embedding"
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Differences, UserComparison, Verdict]:
    workspace = Workspace.at(str(tmp_path_factory.mktemp("workspace")))
    before, after = draw_profiles(1, users=300), draw_profiles(2, users=300, first=20, shift=0.5)
    seal_release(workspace, "r-1", profiles=before, intervals={"auc": (0.7, 0.8)})
    changed = {"scores.buy_7d.auc": 0.73, f"odd.{HOSTILE}": 1.0, "retrieval.encoder.hr_at_10": 0.09}
    seal_release(workspace, "r-2", profiles=after, metrics=changed, intervals={"auc": (0.69, 0.77)}, day=61, seed=9)
    was, now = (read_facts(Release.open(workspace, name)) for name in ("r-1", "r-2"))
    verdict = judge(Consumers.model_validate(CONSUMERS), now, was, set)
    return compare(was, now), compare_users(columns(before), columns(after)), verdict


@pytest.fixture(scope="module")
def page(compared: tuple[Differences, UserComparison, Verdict]) -> str:
    differences, users, verdict = compared
    return render_diff(differences, users, share=0.5, verdict=verdict)


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page  # what came from data is shown, not run


def test_every_anchor_of_the_contents_is_there(page: str) -> None:
    links = re.findall(r'<a href="#(\w+)"', page)
    assert len(links) == 8
    assert [link for link in links if f'<section id="{link}">' not in page] == []


def test_the_page_is_the_same_for_the_same_comparison(
    page: str, compared: tuple[Differences, UserComparison, Verdict]
) -> None:
    assert render_diff(compared[0], compared[1], share=0.5, verdict=compared[2]) == page


def test_the_page_says_what_changed_and_what_it_would_mean(page: str) -> None:
    text = " ".join(html.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)).split())
    for said in (
        "1 of 2 promises to consumers are kept. A promotion would be refused.",
        "may fall 1 %, to at least 0.7425",
        "its 95 % interval is 0.6900 to 0.7700, which holds the old value",
        "280 users of both releases were compared, a sample of 50.0 %",
        "test window: 2023-12-14 to 2024-01-13 in r-1, 2023-12-15 to 2024-01-14 in r-2",
        "within chance",
        "adjusted Rand index",
        "median 0.99",
    ):
        assert said in text, said
    assert "Different space" not in text


def test_what_cannot_be_compared_says_why_in_place_of_a_picture(
    compared: tuple[Differences, UserComparison, Verdict],
) -> None:
    differences = compared[0]
    turned = compare_users(columns(draw_profiles(1)), columns(draw_profiles(1, turn=True)))
    page = render_diff(differences, turned, share=1, verdict=None)
    assert "<strong>Different space.</strong>" in page
    assert 'class="cosines"' not in page
    assert 'id="promises"' not in page
    nobody = compare_users(columns(draw_profiles(1)), columns(draw_profiles(1, first=1000)))
    page = render_diff(differences, nobody, share=1, verdict=None)
    for said in ("No user is in both", "No score is in both", "no user has a vector in both"):
        assert said in page


def test_a_better_metric_swings_to_the_right_and_a_worse_one_to_the_left(page: str) -> None:
    found = re.findall(
        r'<th scope="row" class="mono">(.+?)</th>.+?<span class="swing"><span class="(\w+)" style="(.+?)"', page
    )
    swings = {name: (judgement, style) for name, judgement, style in found}
    better, worse = swings["retrieval.encoder.hr_at_10"], swings["scores.buy_7d.auc"]
    assert better == ("better", "width:50.00%;left:50%")  # 12.5 % is more than a full bar
    assert worse[0] == "worse"
    assert worse[1].endswith("right:50%")


@pytest.mark.parametrize(("psi", "word"), [(0.0, "the same"), (0.1, "somewhat moved"), (0.25, "another population")])
def test_the_reading_of_a_psi(psi: float, word: str) -> None:
    assert psi_word(psi) == word


def test_every_drawing_is_well_formed_and_escapes_names() -> None:
    flow = Flow((HOSTILE, "b"), (HOSTILE,), ((3,), (1,)))
    for drawing in (
        overlay_chart([0.5, 0.5], [1.0, 0.0], [0, 1, 2], HOSTILE, "r-1", "r-2"),
        overlay_chart([0.0], [0.0], [0, 1], "nothing", "r-1", "r-2"),
        cosine_chart([0.25, 0.75], 0.5),
        pairs_chart([(3, 4), (0, 0)], HOSTILE, "r-1", "r-2"),
        flow_chart(flow, HOSTILE),
    ):
        assert list(ET.fromstring(drawing).iter("script")) == []


def test_ribbons_are_as_thick_as_the_users_who_went_that_way() -> None:
    flow = Flow(("a", "b"), ("a", "b"), ((60, 30), (0, 10)))
    thick = {}
    for path in ET.fromstring(flow_chart(flow, "flow")).iter("path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d") or "")]
        right_top, right_bottom = numbers[7], numbers[8]
        thick[path.findtext("title")] = right_bottom - right_top
    assert thick["60 users stayed in a"] / thick["30 users: a to b"] == pytest.approx(2, rel=0.02)
    assert thick["60 users stayed in a"] / thick["10 users stayed in b"] == pytest.approx(6, rel=0.02)
    assert len(thick) == 3  # nobody went from b to a


def test_many_groups_keep_the_largest_and_lose_no_user() -> None:
    names = tuple(f"c{number}" for number in range(30))
    counts = tuple(tuple(31 - row if row == column else 1 for column in range(30)) for row in range(30))
    drawing = ET.fromstring(flow_chart(Flow(names, names, counts), "flow"))
    blocks = [group.findtext("title") or "" for group in drawing.iter("g")]
    assert len(blocks) == 2 * MOST_GROUPS
    assert f"{30 - MOST_GROUPS + 1} others" in blocks[-1]
    left = sum(int(block.rsplit(": ", 1)[1].split(" ")[0].replace(",", "")) for block in blocks[:MOST_GROUPS])
    assert left == sum(map(sum, counts))


def test_a_release_compared_with_itself_has_nothing_to_show(
    compared: tuple[Differences, UserComparison, Verdict],
) -> None:
    differences, users, _ = compared
    same = replace(differences, metrics=tuple(replace(c, judgement="same") for c in differences.metrics), config=())
    page = render_diff(same, users, share=1, verdict=None)
    assert "metrics are the same in both" in page
    assert "<h3>Retrieval</h3>" not in page
