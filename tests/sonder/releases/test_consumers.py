from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.errors import ConfigurationError
from sonder.core.storage import Folder
from sonder.releases.consumers import Consumers, Requirement, load_consumers
from sonder.releases.metric_meaning import better, near_names

WHOLE = """
consumers:
  - name: ads
    owner: ads-oncall@example.org
    needs: [scores.buy_7d]
    requires:
      - {metric: scores.buy_7d.auc, may_fall: 1%}
      - {metric: scores.buy_7d.ece, may_worsen: 10 %, at_most: 0.05}
      - {metric: my.own_number, may_worsen: 2%, better: lower}
  - {name: feed, needs: [embedding]}
"""


def loaded(tmp_path: Path, text: str) -> Consumers:
    (tmp_path / "consumers.yaml").write_text(text, encoding="utf-8")
    return load_consumers(Folder.at(str(tmp_path / "consumers.yaml")))


def requirement(text: str) -> str:
    return f"consumers: [{{name: ads, requires: [{text}]}}]"


def test_a_file_says_who_relies_on_what(tmp_path: Path) -> None:
    ads, feed = loaded(tmp_path, WHOLE).consumers
    auc, ece, own = ads.requires
    assert (auc.fall, auc.rise) == (0.01, None)
    assert (ece.fall, ece.rise, ece.at_most) == (None, 0.1, 0.05)
    assert (own.fall, own.rise) == (None, 0.02)
    assert (ads.owner, feed.needs) == ("ads-oncall@example.org", ("embedding",))


def test_nobody_may_rely_on_anything(tmp_path: Path) -> None:
    assert loaded(tmp_path, "consumers: []").consumers == ()


def test_the_tighter_of_two_tolerances_counts() -> None:
    both = Requirement.model_validate({"metric": "a.auc", "may_fall": "5%", "may_worsen": "1%"})
    assert both.fall == 0.01


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "(top): Input should be"),
        ("consumers:", "consumers: Input should be"),
        ("- ads", "(top): Input should be"),
        ("customers: []", "customers: unknown key"),
        ("consumers: [{name: ads}]", "consumers.ads: consumer 'ads' relies on nothing"),
        ("consumers: [{needs: [embedding]}]", "consumers.0.name: Field required"),
        ("consumers: [{name: '', needs: [embedding]}]", "name: String should match"),
        ("consumers: [{name: ads, needs: [a], want: [b]}]", "consumers.ads.want: unknown key"),
        ("consumers: [{name: ads, needs: [a, a]}]", "names a twice"),
        ("consumers: [{name: ads, needs: [a]}, {name: ads, needs: [b]}]", "names must be unique, repeated: ads"),
        (requirement("{metric: a.auc, may_drop: 1%}"), "consumers.ads.requires.0.may_drop: unknown key"),
        (requirement("{metric: a.auc}"), "a.auc has no bound"),
        (requirement("{metric: a.auc, may_fall: 1}"), "found 1, expected a share of the served value such as 1%"),
        (requirement("{metric: a.auc, may_fall: 0.01}"), "found 0.01, expected a share"),
        (requirement("{metric: a.auc, may_fall: one%}"), "found 'one%'"),
        (requirement("{metric: a.auc, may_fall: -1%}"), "found '-1%'"),
        (requirement("{metric: a.auc, may_fall: nan%}"), "found 'nan%'"),
        (requirement("{metric: a.auc, at_least: .nan}"), "at_least: Input should be a finite number"),
        (requirement("{metric: a.ece, may_fall: 1%}"), "a.ece is better when lower: this would forbid it to improve"),
        (requirement("{metric: a.auc, may_rise: 1%}"), "a.auc is better when higher"),
        (requirement("{metric: a.base_rate, may_worsen: 1%}"), "nothing says which way a.base_rate is better"),
        (requirement("{metric: a.auc, at_least: 1, better: higher}"), "without may_worsen"),
        (requirement("{metric: a.auc, at_least: 0.9, at_most: 0.8}"), "at least 0.9 and at most 0.8"),
        (requirement("{metric: a.auc, may_fall: 1%}, {metric: a.auc, at_least: 1}"), "names a.auc twice"),
        (requirement("{metric: a.auc, may_fall: 1%, may_fall: 50%}"), "'may_fall' is given twice"),
        ("consumers: [", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        loaded(tmp_path, text)
    assert named in str(refused.value)


def test_a_file_that_is_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No consumers file at"):
        load_consumers(Folder.at(str(tmp_path / "absent.yaml")))


def test_a_share_on_both_sides_is_a_band_whatever_is_better() -> None:
    band = Requirement.model_validate({"metric": "a.ece", "may_fall": "5%", "may_rise": "5%"})
    assert (band.fall, band.rise) == (0.05, 0.05)


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("scores.buy_30d.auc", "higher"),
        ("scores.churn.base_rate", None),
        ("scores.churn.ece", "lower"),
        ("retrieval.encoder.ndcg_at_10", "higher"),
        ("retrieval.encoder.hr_at_10_unseen", "higher"),
        ("retrieval.encoder.p90_coverage_at_10", "higher"),
        ("retrieval.encoder.hide_rate_at_10", "lower"),
        ("interests.affinity_ece_level2", "lower"),
        ("truth.lifecycle_agreement_28d_ago", "higher"),
        ("coverage.segments.cluster_id", "higher"),
        ("stability.neighbour_overlap_at_50", "higher"),
        ("stability.user_cosine_p50_published", "higher"),
        ("stability.cluster_churn_same_moment", "lower"),
        ("stability.audience_churn.auc", "lower"),
        ("stability.score_psi.churn_60d", "lower"),
        ("stability.shared_users", None),
        ("data.quarantined", "lower"),
        ("data.users", None),
    ],
)
def test_a_name_says_which_way_is_better(metric: str, way: str | None) -> None:
    assert better(metric) == way


def test_near_names_are_by_spelling_then_by_what_is_measured() -> None:
    known = {"scores.buy_7d.auc", "scores.churn_60d.auc", "scores.churn_60d.ece", "data.users"}
    assert near_names("scores.buy_7.auc", known)[0] == "scores.buy_7d.auc"
    assert near_names("quality.auc", known) == ["scores.buy_7d.auc", "scores.churn_60d.auc"]
    assert near_names("zzz", known) == []
