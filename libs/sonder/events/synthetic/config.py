"""What a synthetic world is asked to be, and the seeds of its parts.

Everything random comes from `numpy`'s SFC64 with seeds spawned from `WorldConfig.seed`, one per part and purpose, so a
part does not depend on how many others there are and the same configuration gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from sonder.core.errors import ConfigurationError
from sonder.events.synthetic.taxonomy import NUM_LEAVES

START = datetime(2025, 1, 1, tzinfo=UTC)  # a Wednesday
START_WEEKDAY = START.weekday()
DAY_MS = 86_400_000
USERS_PER_PART = 6_144  # about 0.8 M events of 90 days: what bounds the memory


@dataclass(frozen=True)
class WorldConfig:
    """`num_users` people over `num_days` days from `START` on."""

    num_users: int
    num_days: int
    seed: int

    def __post_init__(self) -> None:
        if not (0 < self.num_users <= 9_999_999 and 14 <= self.num_days <= 730 and self.seed >= 0):
            raise ConfigurationError(
                f"A world of {self.num_users} users over {self.num_days} days with seed {self.seed}",
                expected="1 to 9,999,999 users, 14 to 730 days and a seed that is not negative",
            )

    @property
    def num_items(self) -> int:
        """Grows with the root of the audience, as catalogues do: 2,828 for 5,000 users."""
        return int(np.clip(40 * np.sqrt(self.num_users), 6 * NUM_LEAVES, 100_000))

    @property
    def num_weeks(self) -> int:
        return -(-self.num_days // 7)

    @property
    def num_parts(self) -> int:
        return -(-self.num_users // USERS_PER_PART)

    def users_of(self, part: int) -> range:
        """User numbers of a part."""
        return range(part * USERS_PER_PART, min((part + 1) * USERS_PER_PART, self.num_users))

    def generator(self, purpose: int, part: int = 0) -> np.random.Generator:
        """The random numbers of one purpose (0 catalogue, 1 people, 2 sessions and actions, 3 accounts) in one part."""
        seeds = np.random.SeedSequence(self.seed, spawn_key=(purpose, part))
        return np.random.Generator(np.random.SFC64(seeds))
