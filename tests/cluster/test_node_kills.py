"""Whole nodes die, on real raylets with addresses of their own: in every step of a build, and while serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.node_kill_build import MOMENTS, PREPARE, report_build
from benchmarks.node_kill_serving import report_serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5_400), pytest.mark.usefixtures("namespaces")]


def test_nodes_that_die_in_a_build_and_while_serving_lose_nothing(short_path: Path) -> None:
    """One after the other on one release: to build it costs minutes."""
    built = report_build(short_path / "b", log_users=1_500, build_users=800)
    assert [kill["step"] for kill in built["kills"]] == [moment.step for moment in (PREPARE, *MOMENTS)]
    assert built["different"] == []
    assert built["files_compared"] > 40
    assert built["releases"] == 1
    assert built["left_in_staging"] == []

    served = report_serving(short_path / "s", str(short_path / "b" / "there-build"))
    assert served["stopped"] is None
    assert served["events_accepted"] > 100
    assert served["events_in_log"] == served["events_accepted"]
    assert served["users_with_lost_or_repeated_events"] == {}
    for kill in served["kills"]:
        assert kill["reads"] > 50, kill
        assert kill["reads_failed"] == 0, kill
