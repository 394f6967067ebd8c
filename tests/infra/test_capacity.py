"""docs/capacity.md is what the program prints, and every number of it has a source that exists."""

from __future__ import annotations

import math

import pytest

from benchmarks.capacity import PAGE, SIZES, render, written
from benchmarks.capacity_constants import ASSUMED, CONSTANTS, values
from benchmarks.capacity_limits import LIMITS, breaks_at
from benchmarks.capacity_plan import plan
from pipelines.prepare_plan import MAX_BUCKETS, ROWS_PER_BUCKET
from services.gateway.following import LOOK_EVERY_S
from sonder.core.config import EncoderConfig
from tests.infra.manifests import ROOT, cluster_specs


def test_the_page_holds_what_the_program_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, render(values())) == page, "python -m benchmarks.capacity --write"


@pytest.mark.parametrize("source", sorted({one.source for one in CONSTANTS} | {one.where for one in LIMITS}))
def test_every_source_exists(source: str) -> None:
    assert source == ASSUMED or (ROOT / source).is_file()


@pytest.mark.parametrize("name", [one.name for one in CONSTANTS])
def test_every_constant_moves_a_number(name: str) -> None:
    before, after = values(), values(**{name: values()[name] * 1.5})
    assert render(before).split("## The constants")[0] != render(after).split("## The constants")[0]


def test_what_the_code_says_is_what_the_model_says() -> None:
    v = values()
    assert (v["max_buckets"], v["rows_per_bucket"]) == (MAX_BUCKETS, ROWS_PER_BUCKET)
    assert v["train_max_events"] == EncoderConfig().max_training_events
    assert LOOK_EVERY_S == 1.0
    groups = {one["groupName"]: one for spec in cluster_specs("base").values() for one in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (f"{v[f'{name}_vcpu']:.0f}", f"{v[f'{name}_gib']:.0f}Gi") == (limits["cpu"], limits["memory"])
    head = cluster_specs("base")["RayService"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert (f"{v['head_vcpu']:.0f}", f"{v['head_gib']:.0f}Gi") == (head["cpu"], head["memory"])


def test_ten_times_the_users_need_about_ten_times_as_much() -> None:
    small, large = plan(10e6, values()), plan(100e6, values())
    spread = [
        sum(hours for stage, hours in one.stages_core_h.items() if "train" not in stage) for one in (small, large)
    ]
    assert spread[1] == pytest.approx(10 * spread[0])
    assert large.stages_core_h["score, training"] == small.stages_core_h["score, training"]  # both are sampled
    assert large.train_h == small.train_h
    assert large.redis_gib == pytest.approx(10 * small.redis_gib)
    assert sum(large.monthly.values()) < 10 * sum(small.monthly.values())


def test_a_limit_breaks_where_the_page_says() -> None:
    v = values()
    for limit in LIMITS:
        at = breaks_at(limit, v)
        if math.isfinite(at):
            assert limit.needed(at, v) <= limit.allowed(v) < limit.needed(at * 1.02, v), limit.name
    assert min(breaks_at(limit, v) for limit in LIMITS) < SIZES[0]


def test_an_unknown_constant_is_told() -> None:
    with pytest.raises(SystemExit, match="Unknown: usres"):
        values(usres=1)
