"""What a rule means, what the parser refuses and where it points; the compiled expression against the plain meaning."""

from __future__ import annotations

import copy
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import InvalidRule
from sonder.segments.rules.grammar import MAX_CHARACTERS, MAX_DEPTH
from sonder.segments.rules.rule import Rule, fields_of_rules
from sonder.segments.rules.schema import RuleSchema, paths_of
from sonder.segments.rules.syntax import Type

SCHEMA = RuleSchema(
    scores=frozenset({"buy_30d"}),
    actions=frozenset({"save", "view"}),
    paths=paths_of(["garden/tools", "home/bed", None]),
)


def complaint(text: str) -> InvalidRule:
    with pytest.raises(InvalidRule) as caught:
        Rule.parse(text, SCHEMA)
    return caught.value


def test_a_rule_is_read_as_an_analyst_writes_it() -> None:
    text = (
        "lifecycle in ('core','casual') and interest('garden/tools') > 0.2 and score.buy_30d > 0.6 "
        "and count(save, 28d) >= 3 and not consent.ads = false"
    )
    rule = Rule.parse(text, SCHEMA)
    assert [field.column for field in rule.fields] == [
        "lifecycle",
        "interest('garden/tools')",
        "score.buy_30d",
        "count('save', 28d)",
        "consent.ads",
    ]
    values = dict(zip([field.column for field in rule.fields], ["core", 0.3, 0.7, 3.0, True], strict=True))
    assert rule.holds(values) is True
    assert rule.holds(values | {"count('save', 28d)": 2.0}) is False


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("is_cold or is_cold and not is_cold", "is_cold or is_cold and not is_cold"),
        ("(is_cold OR num_events>3)  AND is_cold", "(is_cold or num_events > 3) and is_cold"),
        ("((is_cold)) and (is_cold and is_cold)", "is_cold and is_cold and is_cold"),
        ("num_events not between 1 and 5 and is_cold", "not num_events between 1 and 5 and is_cold"),
        ("lifecycle not in (\"core\") or cluster = 'men''s'", "not lifecycle in ('core') or cluster = 'men''s'"),
        ("count(4w) > sum('view', 48h)", "count(28d) > sum('view', 2d)"),
        ("consent.ads is not null and score.buy_30d is null", "consent.ads is known and score.buy_30d is null"),
        ("first_seen >= 2026-01-31", "first_seen >= 2026-01-31"),
        (
            "attribute.'home town' = 'x' and attribute.'in' = '1'",
            "attribute.'home town' = 'x' and attribute.'in' = '1'",
        ),
        ("interest('garden/') > -0.50", "interest('garden') > -0.5"),
    ],
)
def test_a_rule_has_one_canonical_text(text: str, means: str) -> None:
    rule = Rule.parse(text, SCHEMA)
    assert rule.text == means
    assert Rule.parse(means, SCHEMA) == rule


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("lifecyle = 'core'", "line 1, column 1", "Did you mean 'lifecycle'?"),
        ("lifecycle = 'Core'", "line 1, column 13", "Did you mean 'core'?"),
        ("is_cold and\n  score.buy_3d > 1", "line 2, column 3", "Did you mean 'buy_30d'?"),
        ("interest('garden/tool') > 0", "line 1, column 1", "Did you mean 'garden/tools'?"),
        ("count(sav, 28d) > 1", "line 1, column 1", "Did you mean 'save'?"),
        ("num_events > 3 adn is_cold", "line 1, column 16", "Did you mean 'and'?"),
        ("num_events > 'x'", "line 1, column 14", "Expected: a number: num_events"),
        ("lifecycle = 3", "line 1, column 13", "Expected: a text: lifecycle"),
        ("score.buy_30d > first_seen", "line 1, column 17", "A date"),
        ("lifecycle > 'core'", "line 1, column 1", "A text has no order"),
        ("num_events", "line 1, column 1", "num_events alone is a number"),
        ("3 > 2", "line 1, column 1", "a field on one side"),
        ("cluster = null", "line 1, column 11", "`is null`"),
        ("count(save) > 1", "line 1, column 1", "'count' without a duration"),
        ("is_cold(3d)", "line 1, column 1", "Expected: is_cold"),
        ("num_events == 3", "line 1, column 13", "Expected: a field or a value"),
        ("lifecycle in ('core'", "line 1, column 21", "The rule ends"),
        ("cluster = 'abc", "line 1, column 11", "A text that does not end"),
        ("first_seen > 2026-02-30", "line 1, column 14", "No day 2026-02-30"),
        ("count(9999999d) > 1", "line 1, column 7", "1h to 36500d"),
        ("", "line 1, column 1", "Expected: a field"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, place: str, told: str) -> None:
    error = complaint(text)
    assert place in error.found
    assert told in str(error)
    line, carets = error.excerpt.split("\n")
    column = int(place.rsplit(" ", 1)[1])
    assert carets.index("^") == 2 + column - 1
    assert line[2:] in text.split("\n")


def test_the_carets_stand_under_the_whole_offence() -> None:
    assert complaint("is_cold and lifecycle = 'Core'").excerpt == (
        "  is_cold and lifecycle = 'Core'\n"
        "                          ^^^^^^"
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["(" * 5000 + "is_cold", "not " * (MAX_DEPTH + 5) + "is_cold", "x" * MAX_CHARACTERS * 2]
)
def test_a_hostile_rule_is_refused_before_it_hurts(text: str) -> None:
    assert complaint(text)
    wide = Rule.parse(" or ".join(["is_cold"] * 900))
    assert pl.DataFrame({"is_cold": [True]}).select(wide.expression()).item() is True


def test_an_error_keeps_its_excerpt_across_processes() -> None:
    error = complaint("is_cold =")
    assert str(copy.copy(error)) == str(error)


def test_an_attribute_is_a_number_where_a_number_stands_beside_it() -> None:
    rule = Rule.parse("attribute.age >= 18 and attribute.age != 'unknown'")
    assert [(field.column, field.type) for field in rule.fields] == [
        ("number(attribute.age)", Type.NUMBER),
        ("attribute.age", Type.TEXT),
    ]


def test_an_unknown_value_makes_nobody_a_member_unless_asked_for() -> None:
    unknown: dict[str, Any] = {"consent.ads": None}
    assert Rule.parse("consent.ads").holds(unknown) is None
    assert Rule.parse("not consent.ads").holds(unknown) is None
    assert Rule.parse("consent.ads is null or not consent.ads").holds(unknown) is True
    assert Rule.parse("consent.ads and 1 = num_events").holds(unknown | {"num_events": 2.0}) is False


def test_rules_share_their_fields() -> None:
    rules = [Rule.parse("is_cold and num_events > 2"), Rule.parse("num_events < 9")]
    assert [field.column for field in fields_of_rules(rules)] == ["is_cold", "num_events"]


NUMBERS = ["num_events", "recency_days", "score.buy_30d", "interest('garden')", "count(save, 28d)", "attribute.age"]
TRUTHS = ["is_cold", "consent.ads"]
TEXTS = ["lifecycle", "cluster", "attribute.town"]
amounts = st.sampled_from(["0", "1", "2.5", "-3"])
words = st.sampled_from(["'new'", "'core'", "'cold'"])
signs = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
tests = st.one_of(
    st.sampled_from(TRUTHS),
    st.builds("{} {} {}".format, st.sampled_from(NUMBERS), signs, amounts | st.sampled_from(NUMBERS[:5])),
    st.builds("{} {} {}".format, amounts, signs, st.sampled_from(NUMBERS)),
    st.builds("{} in ({}, {})".format, st.sampled_from(NUMBERS), amounts, amounts),
    st.builds("{} between {} and {}".format, st.sampled_from(NUMBERS), amounts, amounts),
    st.builds("{} {} {}".format, st.sampled_from(TEXTS), st.sampled_from(["=", "!="]), words),
    st.builds("{} not in ({}, {})".format, st.sampled_from(TEXTS), words, words),
    st.builds("{} {} {}".format, st.sampled_from(TRUTHS), st.sampled_from(["=", "!="]), st.sampled_from(TRUTHS)),
    st.builds("{} is null".format, st.sampled_from(NUMBERS + TEXTS + TRUTHS)),
    st.builds("{} >= 2026-01-31".format, st.sampled_from(["first_seen", "last_seen"])),
)
texts = st.recursive(
    tests,
    lambda part: st.one_of(
        st.builds("not ({})".format, part),
        st.builds("({}) and {}".format, part, part),
        st.builds("{} or ({})".format, part, part),
    ),
    max_leaves=8,
)
VALUES: dict[Type, st.SearchStrategy[Any]] = {
    Type.NUMBER: st.none() | st.sampled_from([0.0, 1.0, 2.5, -3.0]) | st.floats(allow_nan=False),
    Type.TEXT: st.none() | st.sampled_from(["new", "core", "mine"]),
    Type.TRUTH: st.none() | st.booleans(),
    Type.DATE: st.none() | st.integers(1_769_817_600_000_000 - 1, 1_769_817_600_000_000 + 1),
}


@settings(max_examples=300, deadline=None)
@given(texts, st.data())
def test_the_expression_says_what_the_plain_evaluation_says(text: str, data: st.DataObject) -> None:
    rule = Rule.parse(text)
    row = {field.column: data.draw(VALUES[field.type]) for field in rule.fields if field.type is not None}
    dtypes = {Type.NUMBER: pl.Float64, Type.TEXT: pl.String, Type.TRUTH: pl.Boolean, Type.DATE: pl.Int64}
    schema = {field.column: dtypes[field.type] for field in rule.fields if field.type is not None}
    frame = pl.DataFrame([row], schema=schema, orient="row")
    assert frame.select(rule.expression()).item() is rule.holds(row)
    assert Rule.parse(rule.text) == rule
