"""The synthetic world: the same bytes for the same seed, and a truth that its events agree with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from sonder.core.config import validate
from sonder.core.errors import ConfigurationError
from sonder.core.storage import Folder
from sonder.events.synthetic import WorldConfig, write_world
from sonder.events.synthetic.config import USERS_PER_PART

DAYS = 60
START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(num_users=3_000, num_days=DAYS, seed=7), Folder.at(str(folder)))
    return folder


@pytest.fixture(scope="module")
def events(world: Path) -> pl.DataFrame:
    return pl.read_parquet(world / "events" / "*.parquet")


@pytest.fixture(scope="module")
def items(world: Path) -> pl.DataFrame:
    return pl.read_parquet(world / "items.parquet")


def truth(world: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(world / "truth" / f"{name}.parquet")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        folder = Folder.at(str(tmp_path / name))
        write_world(WorldConfig(num_users=200, num_days=20, seed=seed), folder)
        digests.append({file: (folder / file).digest() for file in folder.files() if file != "sonder.yaml"})
    assert digests[0] == digests[1]
    assert all(digests[0][file] != digests[2][file] for file in digests[0])


def test_writing_again_leaves_nothing_of_a_larger_world(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    write_world(WorldConfig(num_users=USERS_PER_PART + 1, num_days=14, seed=1), folder)
    assert len((folder / "events").files()) == 2
    write_world(WorldConfig(num_users=50, num_days=14, seed=1), folder)
    assert (folder / "events").files() == ["part-00000.parquet"]


def test_people_of_one_part_do_not_depend_on_how_many_parts_follow(tmp_path: Path) -> None:
    small, large = Folder.at(str(tmp_path / "small")), Folder.at(str(tmp_path / "large"))
    counts = write_world(WorldConfig(num_users=USERS_PER_PART, num_days=14, seed=1), small)
    write_world(WorldConfig(num_users=USERS_PER_PART + 500, num_days=14, seed=1), large)
    # The catalogue grows with the audience, and with it the events of a session; the people themselves do not change.
    lifecycle = [
        (folder / "truth" / "lifecycle.parquet").read_table().drop_columns("events_per_day")
        for folder in (small, large)
    ]
    assert lifecycle[1].slice(0, lifecycle[0].num_rows).equals(lifecycle[0])
    assert counts["users"] == USERS_PER_PART


@pytest.mark.parametrize(("users", "days", "seed"), [(0, 90, 7), (10, 3, 7), (10, 90, -1), (10_000_000, 90, 7)])
def test_an_impossible_world_is_refused_with_a_sentence(users: int, days: int, seed: int) -> None:
    with pytest.raises(ConfigurationError, match="Expected: 1 to 9,999,999 users"):
        WorldConfig(users, days, seed)


def test_activity_is_of_the_right_size_and_heavy_tailed(events: pl.DataFrame) -> None:
    per_user = events.group_by("user_id").len()["len"]
    assert 60 < events.height / 3_000 < 110  # 60 of 90 days
    assert per_user.quantile(0.99) > 8 * per_user.median()
    assert events["user_id"].n_unique() > 2_700


def test_the_log_holds_contract_columns_in_the_order_of_time(events: pl.DataFrame) -> None:
    assert events.columns == ["user_id", "item_id", "action", "timestamp", "surface", "value", "request_id"]
    assert events["timestamp"].is_sorted()
    assert events.schema["user_id"] == pl.String
    assert events["user_id"].str.contains(r"^u\d{7}$").all()
    assert events["item_id"].str.contains(r"^i\d{6}$").all()


def test_values_are_prices_of_purchases_and_seconds_of_clicks(events: pl.DataFrame, items: pl.DataFrame) -> None:
    priced = events.filter(pl.col("action") == "buy").join(items, on="item_id")
    assert (priced["value"] == priced["price"]).all()
    assert (events.filter(pl.col("action") == "click")["value"] > 0).all()
    assert events.filter(pl.col("action").is_in(["impression", "save", "hide"]))["value"].null_count() > 0
    assert events.filter(pl.col("action").is_in(["impression", "save", "hide"]))["value"].drop_nulls().is_empty()


def test_a_request_is_one_page_of_one_user(events: pl.DataFrame) -> None:
    pages = events.group_by("request_id").agg(
        pl.col("user_id").n_unique().alias("users"),
        pl.col("surface").n_unique().alias("surfaces"),
        (pl.col("action") == "impression").sum().alias("impressions"),
        pl.col("timestamp").filter(pl.col("action") == "impression").n_unique().alias("times"),
    )
    assert (pages["users"] == 1).all()
    assert (pages["surfaces"] == 1).all()
    assert (pages["impressions"] == 4).all()
    assert (pages["times"] == 1).all()


def test_every_action_follows_an_impression_on_its_page(events: pl.DataFrame) -> None:
    shown = events.filter(pl.col("action") == "impression").select("request_id", "item_id").unique()
    acted = events.filter(pl.col("action") != "impression")
    assert acted.join(shown, on=["request_id", "item_id"], how="anti").is_empty()


def test_days_and_weeks_have_a_rhythm(events: pl.DataFrame) -> None:
    hours = events["timestamp"].dt.hour().value_counts().sort("timestamp")["count"].to_numpy()
    assert len(hours) == 24
    assert hours.max() > 4 * hours.min()
    by_user_hour = events.with_columns(pl.col("timestamp").dt.hour() // 6).group_by("user_id", "timestamp").len()
    favourite = by_user_hour.group_by("user_id").agg(pl.col("len").max() / pl.col("len").sum(), n=pl.col("len").sum())
    assert favourite.filter(pl.col("n") > 50)["len"].mean() > 0.55  # everybody has an own part of the day
    weekday = events.with_columns(pl.col("timestamp").dt.weekday() >= 6).group_by("user_id").agg(
        pl.col("timestamp").mean(), n=pl.len()
    )  # fmt: skip
    shares = weekday.filter(pl.col("n") > 100)["timestamp"]
    assert shares.quantile(0.9) > 1.5 * shares.quantile(0.1)  # some come at weekends, others on workdays


def test_clicks_fall_into_true_interests_and_hides_do_not(
    world: Path, events: pl.DataFrame, items: pl.DataFrame
) -> None:
    interests = truth(world, "interests")
    holds = pl.col("timestamp").is_between(pl.col("from"), pl.col("to"), closed="left")
    joined = (
        events.with_row_index("row")
        .join(items.select("item_id", "category"), on="item_id")
        .join(interests, on=["user_id", "category"], how="left")
        .group_by("row", "action")
        .agg(holds.fill_null(False).any().alias("liked"))
    )
    liked = dict(joined.group_by("action").agg(pl.col("liked").mean()).iter_rows())
    assert liked["click"] > 0.93
    assert liked["buy"] > 0.97
    assert liked["hide"] == 0
    assert 0.5 < liked["impression"] < 0.8


def test_interests_drift(world: Path) -> None:
    interests = truth(world, "interests")
    begins, ends = interests["from"] > START, interests["to"] < START + timedelta(days=DAYS)
    assert 0.1 < begins.mean() < 0.5  # type: ignore[operator]
    assert 0.1 < ends.mean() < 0.5  # type: ignore[operator]
    at_once = interests.filter(pl.col("from") == START).group_by("user_id").len()["len"]
    assert at_once.min() == 1
    assert at_once.max() == 4
    assert interests.select("user_id", "category").is_duplicated().sum() == 0


def test_nobody_acts_outside_of_an_active_period(world: Path, events: pl.DataFrame) -> None:
    active = truth(world, "lifecycle").filter(pl.col("state") == "active")
    holds = pl.col("timestamp").is_between(pl.col("from"), pl.col("to"), closed="left")
    inside = events.join(active, on="user_id").filter(holds)
    assert inside.height == events.height


def test_who_joins_or_returns_comes_on_that_day(world: Path, events: pl.DataFrame) -> None:
    lifecycle = truth(world, "lifecycle")
    arrivals = lifecycle.filter(pl.col("began").is_in(["joined", "returned"])).select(
        "user_id", pl.col("from").dt.date().alias("day")
    )
    days = events.select("user_id", pl.col("timestamp").dt.date().alias("day")).unique()
    assert arrivals.height > 800
    assert arrivals.join(days, on=["user_id", "day"], how="anti").is_empty()
    assert {"before", "joined", "returned", "lapsed", "left"} == set(lifecycle["began"])


def test_the_true_rate_predicts_the_number_of_events(world: Path, events: pl.DataFrame) -> None:
    lifecycle = truth(world, "lifecycle")
    days = (lifecycle["to"] - lifecycle["from"]).dt.total_days()
    arrivals = lifecycle.filter(pl.col("began").is_in(["joined", "returned"]))
    expected = (lifecycle["events_per_day"] * days).sum()
    expected += (arrivals["events_per_day"] / arrivals["sessions_per_day"]).sum()  # one session more on that day
    assert events.height == pytest.approx(expected, rel=0.03)


def test_true_scores_are_calibrated_against_what_happened(world: Path, events: pl.DataFrame) -> None:
    scores = truth(world, "scores")
    cutoff = START + timedelta(days=DAYS - 14)
    scores = scores.filter(pl.col("cutoff") == cutoff)
    after = events.filter(pl.col("timestamp") >= cutoff)
    within = pl.col("timestamp") < cutoff + timedelta(days=7)
    buyers = after.filter(within & (pl.col("action") == "buy"))["user_id"].unique()
    visitors = after["user_id"].unique()
    bought = scores["user_id"].is_in(buyers.implode()).to_numpy()
    churned = ~scores["user_id"].is_in(visitors.implode()).to_numpy()
    for happened, chance in ((bought, scores["buy_7d"].to_numpy()), (churned, scores["churn_14d"].to_numpy())):
        spread = np.sqrt((chance * (1 - chance)).sum())
        assert abs(happened.sum() - chance.sum()) < 4 * spread
        upper = chance > np.median(chance)
        assert abs(happened[upper].sum() - chance[upper].sum()) < 4 * spread
        assert happened[upper].mean() > 2 * happened[~upper].mean()


def test_popularity_inside_a_leaf_falls_like_zipf(events: pl.DataFrame, items: pl.DataFrame) -> None:
    by_chance = events.filter((pl.col("action") == "impression") & (pl.col("surface") == "home"))
    counts = by_chance.join(items, on="item_id").group_by("category", "item_id").len()
    ranked = counts.with_columns(pl.col("len").rank("ordinal", descending=True).over("category").alias("rank"))
    mean = ranked.filter(pl.col("rank") <= 12).group_by("rank").agg(pl.col("len").mean()).sort("rank")
    slope = np.polyfit(np.log(mean["rank"].to_numpy()), np.log(mean["len"].to_numpy()), 1)[0]
    assert -1.4 < slope < -0.6


def test_items_appear_over_time_and_never_before_their_release(events: pl.DataFrame, items: pl.DataFrame) -> None:
    seen = events.group_by("item_id").agg(pl.col("timestamp").min()).join(items, on="item_id")
    assert (seen["timestamp"] >= seen["released_at"]).all()
    assert 0.2 < (items["released_at"] > START).mean() < 0.5  # type: ignore[operator]
    ages = events.join(items, on="item_id").select(age=(pl.col("timestamp") - pl.col("released_at")).dt.total_days())
    young, old = (
        ages.filter(pl.col("age").is_between(7, 20)).height,
        ages.filter(pl.col("age").is_between(35, 48)).height,
    )
    assert young > 1.5 * old


def test_the_catalogue_reads_like_one(items: pl.DataFrame) -> None:
    assert items.columns == ["item_id", "category", "title", "price", "released_at"]
    assert (items["category"].str.count_matches("/") == 2).all()
    assert items["category"].n_unique() == 96
    assert items["title"].str.contains(r"^[A-Z][a-z]+( \d+)? [A-Z][a-z]+ [A-Z0-9]").all()
    assert items["item_id"].is_unique().all()
    assert (items["price"] > 0).all()


def test_the_configuration_beside_the_log_is_valid(world: Path) -> None:
    config = validate(yaml.safe_load((world / "sonder.yaml").read_text()), source="sonder.yaml")
    assert config.events.path == str(world / "events")
    assert [score.name for score in config.scores] == ["buy_7d"]  # churn_14d needs 84 days


def test_accounts_are_made_before_their_first_event_and_lean_by_age_alone(world: Path, events: pl.DataFrame) -> None:
    accounts = pl.read_parquet(world / "users.parquet")
    assert accounts.columns == ["user_id", "signup_at", "country", "age_band", "consent_ads", "consent_email"]
    assert accounts["user_id"].is_unique().all()
    first = events.group_by("user_id").agg(pl.col("timestamp").min(), pl.col("item_id").first())
    known = accounts.join(first, on="user_id")
    assert 0.94 < known.height / first.height < 1  # some people have no account
    assert (known["signup_at"] < known["timestamp"]).all()
    leaves = truth(world, "interests").unique("user_id", keep="first", maintain_order=True)
    by_department = accounts.join(leaves, on="user_id").group_by(pl.col("category").str.split("/").list.first())
    shares = by_department.agg(old=(pl.col("age_band") > "45").mean(), german=(pl.col("country") == "DE").mean())
    assert shares["old"].max() - shares["old"].min() > 0.2
    assert shares["german"].max() - shares["german"].min() < 0.2
