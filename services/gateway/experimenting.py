"""Users of running experiments are answered by their arm: its release, its ranking, or both arms in one list.

Put in the place of an Engine as a SplitEngine is, and only while an experiment is live here, so with none nothing of
this is on the way of a request. Everybody else is answered as a SplitEngine does, the users of a canary too.
An answer is an exposure only if another arm could have answered otherwise: all answers about a user where arms have
releases of their own; recommendations alone where they differ in ranking, unless the caller itself asked for what they
differ in, or the user is cold and gets what is popular in every arm. Who names a release is in no experiment.
Where an arm's release fails to answer, the served one does in its place; the user stays exposed to the arm, whose
failures are part of what it does.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from services.gateway.arms import Arm
from services.gateway.engine import NO_WISH, NOTHING, Engine
from services.gateway.exposing import ExposureLog
from services.gateway.interleaved import merged
from services.gateway.running import Live
from services.gateway.shadow import is_own_fault
from services.gateway.split import Part, Split, SplitEngine
from services.gateway.stages import Wish
from services.gateway.told import ArmAnswer
from sonder.core.logs import request_ids
from sonder.experiments.interleaving import coins_of_request
from sonder.experiments.specification import Ranking

_IS_COLD = b'"is_cold":true,'
_BEFORE_RELEASE = b'{"release":"'  # how every answer of an engine begins


class Settings(NamedTuple):
    """How recommendations are made."""

    with_interests: bool
    wish: Wish

    def of(self, ranking: Ranking | None, explicit: frozenset[str]) -> Settings:
        """An arm's settings, but for what the caller itself asked for."""
        if ranking is None:
            return self
        with_interests = self.with_interests if "from" in explicit else ranking.source == "interests"
        wish = self.wish if "diversity" in explicit else self.wish._replace(diversity=ranking.diversity)
        return Settings(with_interests, wish)


class Hold(NamedTuple):
    """A user's place in an experiment."""

    live: Live
    arm: str


Ask = Callable[[Engine | None, Settings], Awaitable[bytes]]  # the engine of an arm; None: whoever answers without one


async def learn_eligible(engine: Engine | SplitEngine, user_ids: Sequence[str]) -> None:
    """Before a batch: who may be in an experiment, where there is one with a rule."""
    if isinstance(engine, ExperimentEngine):
        await engine.learn(user_ids)


class ExperimentEngine(SplitEngine):
    """A SplitEngine whose users may be in experiments. Of one event loop."""

    def __init__(
        self,
        served: Engine,
        beside: Mapping[str, Engine],
        split: Split | None,
        lives: Sequence[Live],
        exposures: ExposureLog,
    ) -> None:
        super().__init__(served, beside, split)
        self.lives, self._exposures = tuple(lives), exposures
        self._of_release = [live for live in lives if live.decides_release]

    # -- answers about a user -----------------------------------------------------------------------------------------

    def profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        for live in self._of_release:
            arm = live.hold(user_id)
            if arm is not None:
                engine = live.engines[arm]
                try:
                    content = engine.profile(user_id, fields)
                except Exception as error:
                    if engine is self._served or not is_own_fault(error):
                        raise
                    content = self._served.profile(user_id, fields)
                return self._exposed([Hold(live, arm)], user_id, "profile", content)
        return super().profile(user_id, fields)

    async def fresh_profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        return await self._answered(user_id, "profile", lambda engine: engine.fresh_profile(user_id, fields))

    async def explanation(self, user_id: str) -> bytes:
        return await self._answered(user_id, "explanation", lambda engine: engine.explanation(user_id))

    async def similar(self, user_id: str, *, k: int) -> bytes:
        return await self._answered(user_id, "similar", lambda engine: engine.similar(user_id, k=k))

    async def recommendations(
        self,
        user_id: str,
        *,
        k: int,
        seen: bool,
        with_interests: bool = False,
        wish: Wish = NO_WISH,
        explicit: frozenset[str] = NOTHING,
    ) -> bytes:
        async def ask(engine: Engine | None, settings: Settings) -> bytes:
            asked = {"k": k, "seen": seen, **settings._asdict()}
            if engine is None:
                return await SplitEngine.recommendations(self, user_id, **asked)
            return await self._or_served(engine, lambda one: one.recommendations(user_id, **asked))

        settings, engine, holds, interleaved = Settings(with_interests, wish), None, list[Hold](), None
        for live, arm in self._holds(user_id):
            if live.is_interleaved:
                interleaved = live
                continue
            of_arms = {name: settings.of(ranking, explicit) for name, ranking in live.rankings.items()}
            if live.engines or len(set(of_arms.values())) > 1:
                holds.append(Hold(live, arm))
            settings, engine = of_arms[arm], live.engines.get(arm, engine)
        if interleaved is None:
            content = await ask(engine, settings)
        else:
            content = await self._interleaved(interleaved, user_id, k, engine, settings, explicit, ask)
        if _IS_COLD in content:  # whatever the ranking, these are the popular items
            holds = [hold for hold in holds if hold.live.engines]
        return self._exposed(holds, user_id, "recommendations", content)

    def profiles(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        """As of a SplitEngine; the arms of a batch's users are told by no header, and its rows say their release."""
        held = self._held(user_ids)
        if not held:
            return super().profiles(user_ids, fields)
        parts = self._with_held(held, user_ids)
        content = self._joined(parts, user_ids, fields)
        self._expose_batch(held, parts, user_ids)
        return content

    def profiles_stream(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        held = self._held(user_ids)
        if not held:
            return super().profiles_stream(user_ids, fields)
        parts = self._with_held(held, user_ids)
        content = self._joined_stream(parts, user_ids, fields)
        self._expose_batch(held, parts, user_ids)
        return content

    async def learn(self, user_ids: Sequence[str]) -> None:
        """Evaluate rules for the users of a batch in a thread: of many users that takes too long for the loop."""
        for live in self._of_release:
            if live.eligible is not None:
                await asyncio.to_thread(list, map(live.hold, user_ids))

    # -- by an arm ----------------------------------------------------------------------------------------------------

    def _holds(self, user_id: str) -> list[Hold]:
        """Every experiment that the user is in: of each kind one at most (sonder.experiments.starting)."""
        return [Hold(live, arm) for live in self.lives if (arm := live.hold(user_id)) is not None]

    async def _answered(self, user_id: str, surface: str, ask: Callable[[Engine], Awaitable[bytes]]) -> bytes:
        for live in self._of_release:
            arm = live.hold(user_id)
            if arm is not None:
                content = await self._or_served(live.engines[arm], ask)
                return self._exposed([Hold(live, arm)], user_id, surface, content)
        return await self._computed(user_id, ask)

    async def _or_served(self, engine: Engine, ask: Callable[[Engine], Awaitable[bytes]]) -> bytes:
        try:
            return await ask(engine)
        except Exception as error:
            if engine is self._served or not is_own_fault(error):
                raise
            return await ask(self._served)

    async def _interleaved(
        self,
        live: Live,
        user_id: str,
        k: int,
        engine: Engine | None,
        settings: Settings,
        explicit: frozenset[str],
        ask: Ask,
    ) -> bytes:
        """Both arms side by side, drafted into one list; one arm alone where both would answer alike."""
        both = [(live.engines.get(arm, engine), settings.of(one, explicit)) for arm, one in live.rankings.items()]
        if both[0] == both[1]:
            return await ask(*both[0])
        control, other = await asyncio.gather(*(ask(*one) for one in both))
        request_id = next(iter(request_ids()), "") or uuid.uuid4().hex
        coin = coins_of_request(live.version.experiment.salt)(user_id, request_id)
        content, slots = merged(control, other, k, coin)
        if not slots:
            return content
        self._exposures.show(live.name, live.version.version, user_id, request_id=request_id, slots=slots)
        return ArmAnswer.of(content, [(live.name, live.allocation.arms[0])])

    # -- exposures ----------------------------------------------------------------------------------------------------

    def _exposed(self, holds: Sequence[Hold], user_id: str, surface: str, content: bytes) -> bytes:
        """Log the user's exposures and say the arms beside the answer."""
        if not holds:
            return content
        start = len(_BEFORE_RELEASE)
        release = content[start : content.index(b'"', start)].decode()
        for live, arm in holds:
            self._exposures.expose(live.name, live.version.version, arm, user_id, release=release, surface=surface)
        return ArmAnswer.of(content, [(live.name, arm) for live, arm in holds])

    # -- batches ------------------------------------------------------------------------------------------------------

    def _held(self, user_ids: Sequence[str]) -> dict[int, Hold]:
        """The places of a batch that an experiment answers."""
        found: dict[int, Hold] = {}
        for live in self._of_release:
            for place, user_id in enumerate(user_ids):
                if place not in found and (arm := live.hold(user_id)) is not None:
                    found[place] = Hold(live, arm)
        return found

    def _with_held(self, held: Mapping[int, Hold], user_ids: Sequence[str]) -> list[Part]:
        """Who answers which places: an engine for each arm, and for the others whoever does without experiments."""
        by_engine: dict[int, tuple[Engine, list[int]]] = {}
        for place, (live, arm) in held.items():
            by_engine.setdefault(id(live.engines[arm]), (live.engines[arm], []))[1].append(place)
        parts: list[Part] = [
            (_Uncounted(engine is self._served), engine, places) for engine, places in by_engine.values()
        ]
        others = [place for place in range(len(user_ids)) if place not in held]
        rest = self._parts([user_ids[place] for place in others])
        if rest is None:
            rest = [(_Uncounted(True), self._served, list(range(len(others))))] if others else []
        return [*parts, *((arm, engine, [others[place] for place in places]) for arm, engine, places in rest)]

    def _expose_batch(self, held: Mapping[int, Hold], parts: Sequence[Part], user_ids: Sequence[str]) -> None:
        answered = {
            place: self.release_id if isinstance(counted, _Uncounted) and counted.has_failed else engine.release_id
            for counted, engine, places in parts
            for place in places
        }
        for place, (live, arm) in held.items():
            self._exposures.expose(
                live.name,
                live.version.version,
                arm,
                user_ids[place],
                release=answered[place],
                surface="profiles",
            )


class _Uncounted(Arm):
    """The part of a batch that no canary counts."""

    def __init__(self, is_served: bool) -> None:
        super().__init__("served" if is_served else "candidate")
        self.has_failed = False

    def note_batch(self, user_id: str = "", first: bytes | None = None) -> None:
        pass

    def note_failure(self, kind: int) -> None:
        self.has_failed = True
