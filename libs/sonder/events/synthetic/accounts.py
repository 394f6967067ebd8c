"""The user table of the world: when people signed up, country, age band, consent to ads and to email.

The draws have a random stream of their own, so the events do not depend on them. Country has nothing to do with what a
person likes or does; the age band leans with the department of the first interest, so something can be found there.
Who joins within the log signs up minutes before the first event; the others on the day they joined. A few people have
no account, a few accounts no country, and not everybody has decided about a purpose.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.synthetic.config import DAY_MS, START, WorldConfig
from sonder.events.synthetic.people import People
from sonder.events.synthetic.taxonomy import LEAVES_PER_DEPARTMENT, NUM_LEAVES

COUNTRIES = ("DE", "FR", "GB", "IT", "PL", "SE")
COUNTRY_SHARES = (0.3, 0.22, 0.2, 0.14, 0.09, 0.05)
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
AGE_WEIGHTS = (0.16, 0.26, 0.22, 0.17, 0.12, 0.07)
AGE_LEAN = 1.2  # how far the log-odds of the oldest band move from the first department to the last
PURPOSES = {"ads": (0.62, 0.26), "email": (0.48, 0.37)}  # granted, denied; the rest has not decided
SHARE_WITHOUT_ACCOUNT = 0.03
SHARE_WITHOUT_COUNTRY = 0.02
SECONDS_TO_SIGN_UP = (20, 900)  # before the first event
COUNTRY, AGE_BAND = "country", "age_band"


def accounts_table(
    config: WorldConfig, part: int, people: People, user_ids: pa.Array, first_ms: NDArray[np.int64]
) -> pa.Table:
    """One row per account of a part: user_id, signup_at, country, age_band, consent_ads, consent_email.

    `first_ms` [U] is the time of the first event in milliseconds of the log, or past its end.
    """
    rng = config.generator(3, part)
    num = people.num_users
    before_ms = 1_000 * rng.integers(*SECONDS_TO_SIGN_UP, num)
    day_ms = people.joined_day * DAY_MS
    within_ms = np.minimum(np.maximum(first_ms - before_ms, 0), day_ms + DAY_MS - 1)
    signup_ms = np.where(people.joined_day < 0, day_ms + rng.integers(0, DAY_MS, num), within_ms)
    country = rng.choice(len(COUNTRIES), num, p=COUNTRY_SHARES)
    columns = {
        Col.USER_ID: user_ids,
        Col.SIGNUP_AT: pa.array(signup_ms * 1_000 + int(START.timestamp()) * 1_000_000).cast(TIMESTAMP_TYPE),
        COUNTRY: pa.array(COUNTRIES).take(pa.array(country, mask=rng.random(num) < SHARE_WITHOUT_COUNTRY)),
        AGE_BAND: pa.array(AGE_BANDS).take(pa.array(_age_bands(rng, people))),
    }
    for purpose, (granted, denied) in PURPOSES.items():
        drawn = rng.random(num)
        columns[f"consent_{purpose}"] = pa.array(drawn < granted, pa.bool_(), mask=drawn >= granted + denied)
    has_account = rng.random(num) >= SHARE_WITHOUT_ACCOUNT
    return pa.table(columns).filter(pa.array(has_account))


def _age_bands(rng: np.random.Generator, people: People) -> NDArray[np.int64]:
    """A band [U] for each person, older ones likelier in later departments."""
    first_leaf = np.maximum(people.leaf[:, 0, 0], 0)
    place = first_leaf // LEAVES_PER_DEPARTMENT / (NUM_LEAVES // LEAVES_PER_DEPARTMENT - 1) - 0.5  # -0.5 to 0.5
    lean = np.exp(AGE_LEAN * place[:, None] * np.linspace(-1, 1, len(AGE_BANDS))[None, :])
    weight = np.asarray(AGE_WEIGHTS)[None, :] * lean
    reached = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    bands: NDArray[np.int64] = (rng.random(people.num_users)[:, None] >= reached[:, :-1]).sum(axis=1)
    return bands
