"""The published number of the Open Bandit Dataset comes out of our estimator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.off_policy import DATA, PUBLISHED_RATIO, anchor_ratio, read_log, thompson_policy

FOLDER = Path(__file__).parents[3] / DATA


@pytest.fixture(scope="module")
def data() -> Path:
    if not FOLDER.exists():
        pytest.skip(
            f"no Open Bandit data at {DATA}: `make bench-off-policy` fetches its sample, it is not ours to carry"
        )
    return FOLDER


def test_ips_gives_the_ratio_that_the_quick_start_of_obp_prints(data: Path) -> None:
    ratio = anchor_ratio(read_log(data, "random"), thompson_policy(data))
    assert ratio == pytest.approx(PUBLISHED_RATIO, abs=1e-6)  # printed with six decimals and an ellipsis


def test_a_matrix_of_draws_is_what_a_loop_of_draws_takes_from_the_stream(data: Path) -> None:
    policy = thompson_policy(data, 1_000)
    priors = yaml.safe_load((data / "policy" / "conf" / "prior_bts.yaml").read_text(encoding="utf-8"))["all"]
    stream, counts = np.random.RandomState(12345), np.zeros((80, 3))
    for _ in range(1_000):
        best = stream.beta(a=priors["alpha"], b=priors["beta"]).argsort()[::-1][:3]
        counts[best, range(3)] += 1
    np.testing.assert_array_equal(policy[0], counts / 1_000)
