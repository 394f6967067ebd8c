"""The word on a candidate follows from what was found, and only from that."""

import pytest

from sonder.evaluation.adoption import Finding, Judgement, Sameness, decide

DIFFERENT = Sameness(0.4, 0.05, is_same_space=True)
SAME = Sameness(0.995, 0.01, is_same_space=True)


def finding(area: str, judgement: Judgement, *, blocks: bool = False) -> Finding:
    return Finding(area, "x", judgement, f"{area} is {judgement}.", blocks)


def test_a_broken_promise_is_no_whatever_got_better() -> None:
    decision = decide([finding("probes", "better"), finding("promises", "worse", blocks=True)], SAME)
    assert (decision.word, decision.reasons) == ("no", ("promises is worse.",))


def test_a_gain_offline_is_a_question_to_users() -> None:
    found = decide([finding("ranking", "better"), finding("segments", "worse")], DIFFERENT, num_needed=12_000)
    assert found.word == "experiment"
    assert found.reasons == (
        "ranking is better.",
        "To watch: segments is worse.",
        "The experiment asks for 12,000 users in each arm.",
    )


def test_nothing_gained_is_no() -> None:
    assert decide([finding("ranking", "even")], DIFFERENT).word == "no"


def test_more_coverage_alone_is_no_gain_of_users() -> None:
    assert decide([finding("coverage", "better")], DIFFERENT).word == "no"


def test_the_same_answers_need_no_experiment() -> None:
    decision = decide([finding("cost", "better")], SAME)
    assert decision.word == "ship"
    assert "99.5%" in decision.reasons[0]


def test_the_same_answers_at_a_higher_price_are_no() -> None:
    assert decide([finding("cost", "worse")], SAME).word == "no"


@pytest.mark.parametrize(
    "sameness",
    [
        Sameness(None, 0.0, is_same_space=True),
        Sameness(0.999, 0.0, is_same_space=False),
        Sameness(0.999, 0.2, is_same_space=True),
    ],
)
def test_what_was_not_measured_or_moved_is_not_the_same(sameness: Sameness) -> None:
    assert decide([finding("ranking", "better")], sameness).word == "experiment"


def test_logged_randomisation_may_answer_in_place_of_an_experiment() -> None:
    found = [finding("off-policy", "better"), finding("ranking", "even")]
    assert decide(found, DIFFERENT).word == "ship"
    assert decide([*found, finding("cost", "worse")], DIFFERENT).word == "experiment"
