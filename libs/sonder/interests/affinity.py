"""How much each user leans towards each category of the catalogue: decayed, signed, against the population, calibrated.

Shapes: U users, P (user, category) pairs that have events, C categories of a level, L levels.
`share` 0.3 promises that 30 % of the user's next wanted actions (those on items with a category of this level, over the
model's horizon) fall into the category. With w and n the decayed weights of wanted and unwanted actions, q the
population's share and k the prior strength: x = w + k q, mass = x * x / (x + aversion * n), share = mass / sum of all
masses, where a category without events has the mass k q; a rising curve then takes out what bias is left.
`lift` = share / q. `strength` = |share - q| * |ln lift| (a term of Jeffreys' divergence), negative below the
population's share or where more is refused than wanted: a category that everybody likes alike has none.
Source: the Dirichlet-multinomial mean with a fitted prior; the damping by refusals is this module's own: near n = 0 it
takes `aversion * n` off, and it never reaches zero, so that a refused category can be forgiven.
Limits: levels are fitted one by one, so the shares of a/b and a/c need not sum to that of a. A user without an event
on an item with a category has no affinity, and the population's shares are what is known of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.taxonomy import Taxonomy

AFFINITY_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("level", pa.int8(), nullable=False),  # 1 is the top of the tree
        pa.field("rank", pa.int16(), nullable=False),  # within user and level; 1 is the strongest liking
        pa.field("category", pa.string(), nullable=False),
        pa.field("share", pa.float32(), nullable=False),  # expected of the next wanted actions
        pa.field("population_share", pa.float32(), nullable=False),  # expected of anybody
        pa.field("lift", pa.float32(), nullable=False),  # share / population_share
        pa.field("strength", pa.float32(), nullable=False),  # signed; what the rank goes by
        pa.field("evidence", pa.float32(), nullable=False),  # decayed weight of wanted actions
        pa.field("against", pa.float32(), nullable=False),  # decayed weight of unwanted ones
        pa.field("last_at", TIMESTAMP_TYPE, nullable=False),
    ]
)
EPSILON = 1e-12


@dataclass(frozen=True)
class LevelModel:
    """What was fitted for one level of the tree, and the population's shares at the moment."""

    names: tuple[str, ...]  # [C]
    population: tuple[float, ...]  # [C], sum 1
    prior_strength: float  # k: wanted actions that the population's shares are worth
    aversion: float  # how many wanted actions an unwanted one takes back
    curve_raw: tuple[float, ...] = ()  # ascending; () where the shares need no correction
    curve_share: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LevelModel:
        lists = {name: tuple(content[name]) for name in ("names", "population", "curve_raw", "curve_share")}
        return cls(**(content | lists))

    def calibrate(self, raw_P: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares [P] as they came true in the window that the curve was fitted on."""
        if not self.curve_raw:
            return raw_P
        ends = (0.0, *self.curve_raw, 1.0), (0.0, *self.curve_share, 1.0)
        return np.interp(raw_P, *ends)


@dataclass(frozen=True)
class AffinityModel:
    """All that decides an affinity besides the user's own events; JSON, so that batch and serving decide alike."""

    half_life_days: float  # of a user's events
    population_half_life_days: float
    horizon_days: float  # the period that a share speaks of
    levels: tuple[LevelModel, ...]
    num_users: int  # that the numbers were fitted on; 0: too few, they are defaults

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AffinityModel:
        levels = tuple(LevelModel.from_dict(level) for level in content["levels"])
        return cls(**{**content, "levels": levels})


@dataclass(frozen=True)
class Evidence:
    """What the events say at one level: P distinct (user, category) pairs, by user, then category."""

    users: NDArray[np.int64]
    categories: NDArray[np.int64]
    wanted: NDArray[np.float64]  # decayed weight
    unwanted: NDArray[np.float64]  # decayed weight, positive
    last_us: NDArray[np.int64]  # newest event of either sign


def affinity_table(
    timelines: Timelines,
    vocabulary: Vocabulary,
    taxonomy: Taxonomy,
    model: AffinityModel,
    *,
    as_of_us: int,
    max_affinities: int,
) -> pa.Table:
    """Affinities of every user with any -> AFFINITY_SCHEMA, by user, level and rank.

    Of each user and level the `max_affinities` of greatest absolute strength are kept, likings first.
    """
    if tuple(level.names for level in model.levels) != taxonomy.names:
        raise ArtefactMismatch(
            "The affinity model knows other categories than the item table",
            expected="a model that was fitted on the same snapshot",
            do="Build the release again.",
        )
    history = timelines.before(as_of_us)
    said = _Said.of(history, vocabulary, as_of_us=as_of_us, half_life_days=model.half_life_days)
    levels = [_level_rows(said, taxonomy, model, level, max_affinities) for level in range(taxonomy.num_levels)]
    if not levels:
        return AFFINITY_SCHEMA.empty_table()
    rows = {name: np.concatenate([level[name] for level in levels]) for name in levels[0]}
    order = np.argsort(rows["user_row"], kind="stable")
    rows = {name: column[order] for name, column in rows.items()}
    names = pa.array([name for level in model.levels for name in level.names], pa.string())
    columns = {
        **{field.name: pa.array(rows[field.name], field.type) for field in AFFINITY_SCHEMA if field.name in rows},
        "user_id": history.user_ids.take(pa.array(rows["user_row"])),
        "category": names.take(pa.array(rows["category_code"])),
        "last_at": pa.array(rows["last_us"]).cast(TIMESTAMP_TYPE),
    }
    return pa.Table.from_arrays([columns[name] for name in AFFINITY_SCHEMA.names], schema=AFFINITY_SCHEMA)


def evidence_of(
    history: Timelines, vocabulary: Vocabulary, codes_I: NDArray[np.int32], *, as_of_us: int, half_life_days: float
) -> Evidence:
    """Sum up the events of users (cut before `as_of` by the caller) by category; only shown actions say nothing."""
    said = _Said.of(history, vocabulary, as_of_us=as_of_us, half_life_days=half_life_days)
    return _evidence_at(said, codes_I)


@dataclass(frozen=True)
class _Said:
    """The events that say anything of known items, the same at every level."""

    users: NDArray[np.int64]  # [N]
    items: NDArray[np.int32]  # [N]
    times_us: NDArray[np.int64]  # [N]
    decayed: NDArray[np.float64]  # [N] weight, negative for what was not wanted

    @classmethod
    def of(cls, history: Timelines, vocabulary: Vocabulary, *, as_of_us: int, half_life_days: float) -> _Said:
        weights_N = vocabulary.weight_of(history.actions).astype(np.float64)
        is_said = (weights_N != 0) & (history.items >= 0)
        times_us = history.times_us[is_said]
        decayed_N = weights_N[is_said] * decay(times_us, as_of_us=as_of_us, half_life_days=half_life_days)
        return cls(history.user_rows[is_said], history.items[is_said], times_us, decayed_N)


def _evidence_at(said: _Said, codes_I: NDArray[np.int32]) -> Evidence:
    codes_N = codes_I.take(said.items, mode="clip").astype(np.int64)
    is_within = codes_N >= 0
    times_us, decayed_N = said.times_us[is_within], said.decayed[is_within]
    num_categories = int(codes_I.max(initial=0)) + 1
    keys = said.users[is_within] * num_categories + codes_N[is_within]
    keys_P, pair_N = np.unique(keys, return_inverse=True)
    last_us = np.full(len(keys_P), np.iinfo(np.int64).min)
    np.maximum.at(last_us, pair_N, times_us)
    return Evidence(
        users=keys_P // num_categories,
        categories=keys_P % num_categories,
        wanted=_sums(pair_N, np.maximum(decayed_N, 0.0), len(keys_P)),
        unwanted=_sums(pair_N, np.maximum(-decayed_N, 0.0), len(keys_P)),
        last_us=last_us,
    )


def decay(times_us: NDArray[np.int64], *, as_of_us: int, half_life_days: float) -> NDArray[np.float64]:
    """2^(-age / half-life) of each event."""
    halves: NDArray[np.float64] = (times_us - as_of_us) / (half_life_days * MICROSECONDS_PER_DAY)
    return np.exp2(halves)


def _sums(places_N: NDArray[np.int64], weights_N: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.bincount(places_N, weights_N, minlength=size).astype(np.float64)
    return sums  # bincount of no weights at all is of integers


def raw_shares(
    users_P: NDArray[np.int64],
    wanted_P: NDArray[np.float64],
    unwanted_P: NDArray[np.float64],
    population_P: NDArray[np.float64],
    *,
    prior_strength: float,
    aversion: float,
) -> NDArray[np.float64]:
    """Share of each pair before the curve; pairs of a user that are not listed keep the population's mass."""
    prior_P = prior_strength * population_P
    level_P = np.maximum(wanted_P + prior_P, EPSILON)
    mass_P = level_P * level_P / (level_P + aversion * unwanted_P)
    total_U = prior_strength + np.bincount(users_P, mass_P - prior_P)
    shares: NDArray[np.float64] = mass_P / np.maximum(total_U[users_P], EPSILON)
    return np.minimum(shares, 1.0)


def level_shares(evidence: Evidence, level: LevelModel) -> NDArray[np.float64]:
    """Calibrated share of each pair [P]."""
    population_P = np.asarray(level.population)[evidence.categories]
    raw = raw_shares(
        evidence.users,
        evidence.wanted,
        evidence.unwanted,
        population_P,
        prior_strength=level.prior_strength,
        aversion=level.aversion,
    )
    return level.calibrate(raw)


def strengths(shares_P: NDArray[np.float64], population_P: NDArray[np.float64], evidence: Evidence) -> Any:
    """Signed distance from the population [P]; see the module's docstring."""
    log_lift = np.log(np.maximum(shares_P, EPSILON) / np.maximum(population_P, EPSILON))
    size = np.abs((shares_P - population_P) * log_lift)
    is_disliked = (shares_P < population_P) | (evidence.unwanted > evidence.wanted)
    return np.where(is_disliked, -size, size)


def _level_rows(
    said: _Said,
    taxonomy: Taxonomy,
    model: AffinityModel,
    level: int,
    max_affinities: int,
) -> dict[str, NDArray[Any]]:
    """The columns of one level, by user and rank; users as rows, categories counted through all levels."""
    fitted = model.levels[level]
    evidence = _evidence_at(said, taxonomy.codes_LI[level])
    shares = level_shares(evidence, fitted)
    population = np.asarray(fitted.population)[evidence.categories]
    strength = strengths(shares, population, evidence)
    kept = _first(evidence.users, -np.abs(strength), max_affinities)[0]
    order, ranks = _first(evidence.users[kept], -strength[kept], max_affinities)
    kept = kept[order]
    return {
        "user_row": evidence.users[kept],
        "category_code": evidence.categories[kept] + sum(len(above.names) for above in model.levels[:level]),
        "level": np.full(len(kept), level + 1),
        "rank": ranks,
        "share": shares[kept],
        "population_share": population[kept],
        "lift": shares[kept] / np.maximum(population[kept], EPSILON),
        "strength": strength[kept],
        "evidence": evidence.wanted[kept],
        "against": evidence.unwanted[kept],
        "last_us": evidence.last_us[kept],
    }


def _first(
    users_P: NDArray[np.int64], keys_P: NDArray[np.float64], num: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs with the `num` lowest keys of each user, by user, then key, and their places from 1."""
    order = np.lexsort((keys_P, users_P))
    starts = np.flatnonzero(np.diff(users_P[order], prepend=-1))
    places = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order)))) + 1
    is_kept = places <= num
    return order[is_kept], places[is_kept]
