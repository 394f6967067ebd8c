"""From a calibrated number to money: whom to act on, and from which score on acting pays.

Everything a user may bring is linear in the score, so one `Payoff` says it all: gain(score) = per_unit * score + fixed.
cost table    p is the probability of the outcome. Acting brings p * true_positive + (1 - p) * false_positive, leaving
              alone p * false_negative + (1 - p) * true_negative; the gain is the difference (Elkan 2001)
cost, value   effect * value * p - cost: `effect` is the share of the value that acting recovers
an amount     margin * E[amount] - cost
an uplift     value * uplift - cost: here the effect of acting is in the score itself
We act on a user iff the gain is above 0. Money is in one unit of the caller's choice, per user; a cost is a negative
entry of the table.
Source: C. Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001, equation 2.
Limits: without an uplift the score says what will happen, not what acting changes. Users with a high score may be those
whom acting changes least, so such a gain is an upper bound (`UPPER_BOUND` says it to whoever reads the number).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from sonder.core.errors import InvalidRequest

Acts = Literal["above", "below", "always", "never"]
CELLS = ("true_positive", "false_positive", "false_negative", "true_negative")
UPPER_BOUND = (
    "An upper bound: the score says for whom it will come true, not whom acting changes. It is as if acting recovered "
    "{effect:.0%} of the value from everybody for whom it comes true. A randomised test and `sonder uplift` tell what "
    "acting changes."
)


@dataclass(frozen=True)
class Payoff:
    """What acting on a user brings over leaving it alone: per_unit * score + fixed."""

    per_unit: float
    fixed: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_unit) and math.isfinite(self.fixed)):
            raise InvalidRequest(f"A payoff of {self.per_unit} and {self.fixed}", expected="finite amounts of money")

    def gain(self, score: pl.Expr) -> pl.Expr:
        """Money that acting brings at each score."""
        return score * self.per_unit + self.fixed

    @property
    def break_even(self) -> float | None:
        """The score at which acting neither gains nor loses; None if the score decides nothing."""
        return None if self.per_unit == 0 else -self.fixed / self.per_unit + 0.0

    def acts(self, *, lowest: float = 0.0, highest: float = 1.0) -> Acts:
        """On which side of the break-even acting pays, for scores of [lowest, highest]."""
        ends = [self.per_unit * score + self.fixed if math.isfinite(score) else self.per_unit * score
                for score in (lowest, highest)]  # fmt: skip
        if min(ends) > 0:
            return "always"
        if max(ends) <= 0:
            return "never"
        return "above" if self.per_unit > 0 else "below"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"break_even": self.break_even}


@dataclass(frozen=True)
class CostTable:
    """Money that each of the four ends brings; what it costs is negative. Positive: the score's event comes true."""

    true_positive: float  # acted, and it came true (or would have)
    false_positive: float  # acted in vain
    false_negative: float  # did nothing, and it came true
    true_negative: float  # did nothing, rightly

    @property
    def payoff(self) -> Payoff:
        """The difference between acting and leaving alone, as a function of the probability."""
        if_true = self.true_positive - self.false_negative
        if_false = self.false_positive - self.true_negative
        return Payoff(if_true - if_false, if_false)

    @classmethod
    def parse(cls, text: str) -> CostTable:
        """Read `true_positive=9.8,false_positive=-0.2,false_negative=0,true_negative=0`; InvalidRequest else."""
        cells: dict[str, float] = {}
        for part in text.split(","):
            name, _, amount = part.partition("=")
            try:
                cells[name.strip()] = float(amount)
            except ValueError:
                raise _bad_table(f"{part.strip()!r} in the cost table") from None
        if sorted(cells) != sorted(CELLS):
            raise _bad_table(f"A cost table of {', '.join(sorted(cells))}")
        return cls(**cells)


def simple_payoff(*, cost: float, value: float, effect: float = 1.0) -> Payoff:
    """Each contact costs `cost`; acting recovers `effect` of `value` where the event comes true (or of each unit)."""
    if cost < 0:
        raise InvalidRequest(f"A cost of {cost:g}", expected="0 or more for each contact")
    if not 0 < effect <= 1:
        raise InvalidRequest(f"An effect of {effect:g}", expected="the share of the value that acting recovers, 0 to 1")
    return Payoff(effect * value, -cost)


def affordable(budget: float, cost: float) -> int:
    """How many contacts a budget pays; a hair below a whole number is that number (0.3 / 0.1 is 3)."""
    if not (math.isfinite(budget) and budget >= 0):
        raise InvalidRequest(f"A budget of {budget:g}", expected="an amount of money, 0 or more")
    if cost <= 0:
        raise InvalidRequest("A budget without a cost", expected="--cost above 0", do="Or name the users: --size N")
    return math.floor(budget / cost * (1 + 1e-12))


def in_order(scored: pl.DataFrame, payoff: Payoff) -> pl.DataFrame:
    """user_id and score -> user_id, score, expected_gain: most first, of equals the first user id."""
    with_gain = scored.select("user_id", "score", expected_gain=payoff.gain(pl.col("score").cast(pl.Float64)))
    return with_gain.sort("expected_gain", "user_id", descending=[True, False])


def choose(ordered: pl.DataFrame, limit: int | None) -> pl.DataFrame:
    """Users of `in_order` to act on: at most `limit` (None: no limit), none whose expected gain is not above 0."""
    paying = ordered.filter(pl.col("expected_gain") > 0)
    chosen = paying if limit is None else paying.head(limit)
    return chosen.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def _bad_table(found: str) -> InvalidRequest:
    example = "true_positive=9.8,false_positive=-0.2,false_negative=0,true_negative=0"
    return InvalidRequest(found, expected=f"what each end brings, such as {example}")
