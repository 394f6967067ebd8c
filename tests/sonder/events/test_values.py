"""Columns of any type become text or numbers of the contract."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.events.values import failing_rows, number_of, text_of


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([17850, None]), ["17850", None]),
        (pa.array([17850.0, 1.5, None, float("nan")]), ["17850", "1.5", None, None]),
        (pa.array([3.0, 2.5], pa.float16()), ["3", "2.5"]),
        (
            pa.array(["  a b ", "", None, "NULL", "nan", r"\N", "17850.0"]),
            ["a b", None, None, None, None, None, "17850.0"],
        ),
        (pa.array([b" x ", None]), ["x", None]),
        (pa.array(["u1", "u2", None, "u1"]).dictionary_encode(), ["u1", "u2", None, "u1"]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([Decimal("12.00"), Decimal("12.50")]), ["12", "12.50"]),
        (pa.array([b"\x01\xff"], pa.binary(2)), ["01ff"]),
        (pa.nulls(2), [None, None]),
        (pa.array(["é\u00a0"]), ["é"]),
        (pa.array(["a"], pa.string_view()), ["a"]),
    ],
)
def test_an_id_of_any_type_is_text(column: pa.Array, expected: list[str | None]) -> None:
    texts = text_of(column)
    assert texts.values.to_pylist() == expected
    assert not texts.is_bad.any()


@pytest.mark.parametrize(
    "column",
    [pa.array([[1], None]), pa.array([{"a": 1}, None]), pa.array([b"\xff\xfe", None]), pa.array(["a\0b", None]),
     pa.array([float("inf"), None])],
)  # fmt: skip
def test_what_is_not_text_is_bad_and_a_null_beside_it_is_only_missing(column: pa.Array) -> None:
    texts = text_of(column)
    assert texts.is_bad.tolist() == [True, False]
    assert texts.is_missing.tolist() == [False, True]


def test_one_wrong_byte_costs_only_its_own_row() -> None:
    texts = text_of(pa.array([b"a"] * 500 + [b"\xff"] + [b"b"] * 500))
    assert np.flatnonzero(texts.is_bad).tolist() == [500]
    assert texts.values[499].as_py() == "a"
    assert texts.values[501].as_py() == "b"


def test_invalid_text_that_parquet_lets_through_is_found() -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    assert text_of(invalid).is_bad.tolist() == [True]


def test_a_slice_of_a_column_is_read_by_its_own_offsets() -> None:
    assert text_of(pa.array(["a", " b ", None, "d"]).slice(1, 2)).values.to_pylist() == ["b", None]
    assert text_of(pa.array([b"a", b"\xff", b"c"]).slice(1)).is_bad.tolist() == [True, False]


def test_numbers_come_from_text_too_and_nothing_else_passes() -> None:
    numbers = number_of(pa.array(["1", " 2.5 ", "1e3", "-4", "", "nan", "two", "1,5", "inf"]))
    assert numbers.values.to_pylist() == [1.0, 2.5, 1000.0, -4.0, None, None, None, None, None]
    assert numbers.is_bad.tolist() == [False] * 6 + [True, True, True]


def test_nan_is_no_number_but_not_bad_and_infinity_and_booleans_are_bad() -> None:
    assert number_of(pa.array([float("nan"), None])).is_bad.tolist() == [False, False]
    assert number_of(pa.array([float("inf")])).is_bad.tolist() == [True]
    assert number_of(pa.array([True, None])).is_bad.tolist() == [True, False]
    assert number_of(pa.array([[1.0], None])).is_bad.tolist() == [True, False]


@given(st.sets(st.integers(0, 199)), st.integers(1, 200))
def test_halving_finds_exactly_the_rows_that_fail(failing: set[int], num_rows: int) -> None:
    def works(start: int, stop: int) -> bool:
        return not any(start <= row < stop for row in failing)

    assert failing_rows(num_rows, works) == sorted(row for row in failing if row < num_rows)
