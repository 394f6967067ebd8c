"""Counts of gateways: bins keep the order, files add up, and what is old or broken is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.storage import Folder
from sonder.releases.canary_counts import (
    SLOT_S,
    STALE_S,
    WINDOW,
    Counts,
    Tally,
    bin_end_s,
    latency_bin,
    read_counts,
    score_bin,
    slot_of,
    write_counts,
)

NOW_S = 1_000_000_000.0
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def counts_of(slot: int, requests: int, *, score: float = 0.5) -> Counts:
    tally = Tally(requests, 1, 2, Counter({latency_bin(0.001): requests - 2}))
    scores = {"served": {"buy": Counter({score_bin(score): requests})}, "candidate": {}}
    return Counts({slot: {("served", "stored"): tally}}, scores, gateways=1, dropped=3)  # type: ignore[arg-type]


@given(st.floats(0, 1e6))
def test_a_latency_lies_below_the_end_of_its_bin_and_within_a_tenth_of_it(seconds: float) -> None:
    end = bin_end_s(latency_bin(seconds))
    if 1e-6 < seconds < 250:
        assert seconds <= end * (1 + 1e-9)
        assert end / seconds < 1.1


@given(FINITE, FINITE)
def test_scores_fall_into_bins_in_their_own_order(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert score_bin(low) <= score_bin(high)


def test_scores_two_percent_apart_are_told_apart() -> None:
    assert len({score_bin(0.5 * 1.03**step) for step in range(20)}) == 20
    assert score_bin(0.0) == 0
    assert score_bin(float("nan")) == 0
    assert score_bin(-0.5) == -score_bin(0.5) < 0 < score_bin(1e-30)


def test_two_gateways_add_up_and_a_file_says_what_was_counted(tmp_path: Path) -> None:
    folder, slot = Folder.at(str(tmp_path / "canary")), slot_of(NOW_S)
    write_counts(folder, "a", counts_of(slot, 10), now_s=NOW_S)
    assert read_counts(folder, now_s=NOW_S) == counts_of(slot, 10)
    write_counts(folder, "b", counts_of(slot, 20), now_s=NOW_S - STALE_S / 2)
    together = read_counts(folder, now_s=NOW_S)
    assert together.total("served", "stored") == Tally(30, 2, 4, Counter({latency_bin(0.001): 26}))
    assert together.scores["served"]["buy"] == Counter({score_bin(0.5): 30})
    assert (together.gateways, together.dropped) == (2, 6)


def test_a_gateway_that_is_gone_and_slots_before_the_window_are_left_out(tmp_path: Path) -> None:
    folder, slot = Folder.at(str(tmp_path / "canary")), slot_of(NOW_S)
    write_counts(folder, "gone", counts_of(slot, 10), now_s=NOW_S - STALE_S - 1)
    write_counts(folder, "here", counts_of(slot - WINDOW, 20), now_s=NOW_S)
    assert read_counts(folder, now_s=NOW_S).total("served", "stored") == Tally()
    kept = counts_of(slot - WINDOW + 1, 20)
    write_counts(folder, "here", kept, now_s=NOW_S)
    assert read_counts(folder, now_s=NOW_S).total("served", "stored").requests == 20
    assert SLOT_S * WINDOW == 1200


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"written_at_s": "x"}', b'{"written_at_s": 1e9, "slots": [1]}']
)
def test_a_file_that_cannot_be_read_leaves_the_others(tmp_path: Path, content: bytes) -> None:
    folder = Folder.at(str(tmp_path / "canary"))
    (folder / "broken.json").write_bytes(content)
    write_counts(folder, "here", counts_of(slot_of(NOW_S), 10), now_s=NOW_S)
    assert read_counts(folder, now_s=NOW_S).gateways == 1


def test_nothing_is_counted_where_there_is_no_folder(tmp_path: Path) -> None:
    assert read_counts(Folder.at(str(tmp_path / "nowhere")), now_s=NOW_S) == Counts()
