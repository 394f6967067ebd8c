"""Every error has three parts, one HTTP status, and survives the trip from a worker."""

from __future__ import annotations

import copy
import re

from sonder.core import errors


def test_the_docstring_draws_every_error_with_its_status() -> None:
    drawn = dict(re.findall(r"(\w+)\s{2,}(\d{3})", errors.__doc__ or ""))
    for name in set(errors.__all__) - {"SonderError"}:
        assert drawn[name] == str(getattr(errors, name).status), name


def test_a_message_says_what_was_found_expected_and_to_do() -> None:
    error = errors.NotFound("No release r-1", expected="one of r-2, r-3", do="List them with `sonder release list`")
    assert str(error) == "No release r-1. Expected: one of r-2, r-3. List them with `sonder release list`."


def test_an_error_keeps_its_parts_when_it_is_copied_across_processes() -> None:
    original = errors.TooManyBadRows("a", expected="b", do="c")
    again = copy.copy(original)
    assert (type(again), again.found, again.expected, again.do) == (errors.TooManyBadRows, "a", "b", "c")
