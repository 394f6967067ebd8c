"""When people come after the log has ended: its chain of days goes on, and each visit is one list of recommendations.

The states of the log's last day lapse and return at the same rates, active people come a Poisson number of times a
day, and once more on a day of return, at the hours that they prefer. Nobody new joins, and interests, which change
within the log alone, stay as they are. Visits do not depend on what is shown: the same seed gives the same visits
whatever the recommender, so a policy changes what people do when they come, never whether they come.
Legend: U users of the world's parts, one after the other; V visits, by time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.synthetic.catalogue import Catalogue, build_catalogue
from sonder.events.synthetic.config import DAY_MS, WorldConfig
from sonder.events.synthetic.identifiers import padded_ids
from sonder.events.synthetic.people import ACTIVE, People, build_people, pass_day
from sonder.events.synthetic.sessions import draw_start_ms

NO_ITEM = -1
VISITS_STREAM, CHOICES_STREAM = 4, 5  # purposes of WorldConfig.generator; below it, the caller's seed


@dataclass(frozen=True)
class World:
    """A catalogue and the people of some parts; a user is a row of `people`, an item a row of `catalogue`."""

    config: WorldConfig
    catalogue: Catalogue
    people: People

    @classmethod
    def of(cls, config: WorldConfig, parts: Sequence[int] | None = None) -> World:
        """The people of some parts, or of all."""
        catalogue = build_catalogue(config)
        chosen = range(config.num_parts) if parts is None else parts
        each = [build_people(config, catalogue, part) for part in chosen]
        columns = {one.name: np.concatenate([getattr(people, one.name) for people in each]) for one in fields(People)}
        return cls(config, catalogue, People(**columns))

    @cached_property
    def user_ids(self) -> pa.Array:
        """Ids [U] as in the log."""
        return padded_ids("u", self.people.number + 1, 7)

    def item_rows(self, lists: Sequence[Sequence[str]], num_places: int) -> NDArray[np.int32]:
        """Rows [N, K] of lists of item ids; NO_ITEM where a list is shorter. ValueError for an id that is no item's."""
        rows = np.full((len(lists), num_places), NO_ITEM, dtype=np.int32)
        cut = [list(items[:num_places]) for items in lists]
        flat = pa.array([item for items in cut for item in items], pa.string())
        found = pc.index_in(flat, self.catalogue.item_ids)
        if found.null_count:
            unknown = flat.filter(pc.is_null(found))[0].as_py()
            raise ValueError(f"found {unknown!r} among the recommended, which is no item of this world")
        lengths = np.asarray([len(items) for items in cut])
        rows[np.arange(num_places)[None, :] < lengths[:, None]] = found.to_numpy(zero_copy_only=False)
        return rows


@dataclass(frozen=True)
class Visits:
    """Who came when; days and milliseconds count from the start of the log."""

    user: NDArray[np.int64]  # [V] row
    day: NDArray[np.int64]  # [V]
    time_ms: NDArray[np.int64]  # [V] ascending

    def __len__(self) -> int:
        return len(self.user)

    def of(self, chosen: NDArray[np.bool_]) -> Visits:
        """Some of them."""
        return Visits(self.user[chosen], self.day[chosen], self.time_ms[chosen])


def draw_visits(world: World, num_days: int, *, seed: int) -> Visits:
    """The visits of the days after the log's last; more days leave the earlier ones as they were."""
    rng = world.config.generator(VISITS_STREAM, seed)
    people = world.people
    state = people.state[:, -1].copy()
    days = []
    for day in range(world.config.num_days, world.config.num_days + num_days):
        returns = pass_day(rng, state, people.lapse)
        count = rng.poisson(np.where(state == ACTIVE, people.daily_rate(day), 0.0)) + returns
        user = np.repeat(np.arange(people.num_users), count)
        time_ms = day * DAY_MS + draw_start_ms(rng, people.day_parts[user])
        order = np.lexsort((user, time_ms))
        days.append(Visits(user[order], np.full(len(user), day), time_ms[order]))
    return Visits(*(np.concatenate([getattr(day, one.name) for day in days]) for one in fields(Visits)))
