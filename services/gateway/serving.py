"""What a gateway serves at this moment: the current release, what is beside it, the canary between two of them, and the
experiments that run.

`assign` is called with what answers from then on: the Engine of the current release, with anything beside it a
SplitEngine, with an experiment an ExperimentEngine. Two loops change that: the follower opens and closes releases, and
the other looks at CANARY and at experiments/RUNNING once a second; a third one writes exposures.
While a trial runs, each gateway writes what it counted every WRITE_EVERY_S, reads what all have written, and judges it
by the same rule (sonder.releases.canary_verdict); whoever sees a limit broken first ends the trial in CANARY, and every
gateway goes back at its next look. A trial that has ended is never started again by itself.
Limits: what cannot be read or written is told in the log and leaves everything as it is, the trial too.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from services.gateway.answers import now_us
from services.gateway.arms import Recorder
from services.gateway.engine import Engine
from services.gateway.experimenting import ExperimentEngine
from services.gateway.exposing import ExposureLog
from services.gateway.following import GRACE_S, ReleaseFollower
from services.gateway.running import Live, RunningExperiments
from services.gateway.split import Split, SplitEngine
from sonder.core import metrics
from sonder.core.errors import NotReady
from sonder.core.workspace import Workspace
from sonder.events.erasure import read_erasures
from sonder.profiles.loading import drop_erased
from sonder.releases.artefacts import Release, served_release
from sonder.releases.canary import Canaries, Canary, State, Trial, served_beside
from sonder.releases.canary_counts import Counts, read_counts, write_counts
from sonder.releases.canary_verdict import Comparison, broken, compare

logger = logging.getLogger("sonder")
READY_WITHIN_S = 180.0  # of the stages, which load a release when they are first asked for it
LOOK_EVERY_S = 1.0
WRITE_EVERY_S = 2.0


class Serving:
    """The releases that a gateway answers from. `run` follows them until cancelled."""

    def __init__(
        self,
        workspace: Workspace,
        release: str | None,
        *,
        opened: Callable[[str], Engine],
        assign: Callable[[Engine | SplitEngine], None],
        grace_s: float = GRACE_S,
        recorder: Callable[[], Recorder] = Recorder,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`release`: this one for good, with nothing beside it and no experiment; None: the served one and what CANARY
        and RUNNING say.
        """
        self._workspace, self._pinned = workspace, release
        self._assign, self._recorder = assign, recorder
        self._canaries = Canaries(workspace)
        self._gateway = uuid.uuid4().hex[:12]
        self.experiments = RunningExperiments(workspace, now=now)
        self.exposures = ExposureLog(workspace, self._gateway)
        self._uncleaned: list[tuple[Engine, int]] = []  # whose stores may hold who was erased since a moment
        first = release or served_release(workspace)
        self.follower = ReleaseFollower(
            first,
            opened(first),
            served=lambda: release or served_release(workspace),
            opened=opened,
            activate=self._activate,
            retire=self._retire,
            wants_beside=lambda served: () if release else served_beside(workspace, served),
            changed=self._publish,
            grace_s=grace_s,
        )
        self._trial: Trial | None = None
        self._split: Split | None = None
        self._lives: list[Live] = []
        self._wrote_s = 0.0

    async def run(self) -> None:
        await asyncio.gather(self.follower.run(), self._watch(), self.exposures.run())

    async def close(self) -> None:
        """When the last request was answered: what is known of exposures is written."""
        await self.exposures.close()

    async def erase(self, user_id: str) -> bytes:
        """Out of every store that is open, also of those that close soon: a switch back takes them again.

        Exposures that wait here are written first, so that they are erased and counted where all the others lie.
        """
        await asyncio.to_thread(self.exposures.flush)
        self.exposures.forget(user_id)
        engines = self.follower.open_parts()
        return await engines[0].erase(user_id, beside=engines[1:])

    # -- engines ------------------------------------------------------------------------------------------------------

    async def _activate(self, engine: Engine) -> None:
        """Wait until every stage answers for it, without whoever was erased while its store was closed or loaded."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not await engine.is_ready():
            if time.monotonic() > deadline:
                raise NotReady(f"The stages of release {engine.release_id} have not answered")
            await asyncio.sleep(0.25)
        since_us = now_us()
        await asyncio.to_thread(self._drop_erased, engine, engine.created_at_us)
        self._uncleaned.append((engine, since_us))

    async def _retire(self, engine: Engine) -> None:
        self._uncleaned = [(one, since_us) for one, since_us in self._uncleaned if one is not engine]
        engine.close(with_log=False)

    async def _publish(self) -> None:
        """Answer from what is there now."""
        while not self.experiments.is_prepared(self.follower.part):  # else they would miss answers until the next look
            await asyncio.to_thread(self.experiments.prepare, self.follower.part)
        served, beside, before = self.follower.part, self.follower.beside, self._split
        self._split = self._split_of(self._trial)
        self._lives = self.experiments.lives(served, beside)
        if self._lives:
            self._assign(ExperimentEngine(served, beside, self._split, self._lives, self.exposures))
        else:
            self._assign(SplitEngine(served, beside, self._split) if beside else served)
        served.announce()
        metrics.CANARY_SHARE.set(0.0 if self._split is None else self._split.share)
        if before is not None and before is not self._split and before.shadow is not None:
            await before.shadow.close()
        await self._clean()

    async def _clean(self) -> None:
        """Whoever was erased before an engine was among those that `erase` knows."""
        for entry in list(self._uncleaned):
            await asyncio.to_thread(self._drop_erased, *entry)
            self._uncleaned = [one for one in self._uncleaned if one is not entry]

    def _drop_erased(self, engine: Engine, since_us: int) -> None:
        erasures = read_erasures(self._workspace.erasures)
        erased = {user: at_us for user, at_us in erasures.items() if at_us >= since_us}
        drop_erased(engine.store, Release.open(self._workspace, engine.release_id).profiles, erased)

    def _split_of(self, trial: Trial | None) -> Split | None:
        """The split of the trial, the one that runs already where it is of this trial and engine."""
        if trial is None or trial.served != self.follower.release:
            return None
        candidate = self.follower.beside.get(trial.candidate)
        if candidate is None:
            return None  # it is being opened
        split = self._split
        if split is None or split.trial.id != trial.id or split.candidate is not candidate:
            split = Split(trial, candidate, self._recorder())
            logger.info("canary %s: %s beside %s", trial.id, trial.candidate, trial.served)
        split.share = trial.share_at(datetime.now(UTC))
        return split

    # -- the trial ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                if self._split is not None:  # first, so that what is noted never piles up
                    self._split.recorder.roll()
                if self._uncleaned:
                    await self._clean()
                if self._pinned is None:
                    await self.look()
            except Exception as error:  # everything stays as it is
                logger.error("canary: %s: %s", type(error).__name__, error)
            try:
                if self._pinned is None:
                    await self.look_at_experiments()
            except Exception as error:
                logger.error("experiments: %s: %s", type(error).__name__, error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look_at_experiments(self) -> None:
        """Once: what RUNNING says, and what follows from it."""
        await asyncio.to_thread(self.experiments.look, self.follower.part)
        if self.experiments.lives(self.follower.part, self.follower.beside) != self._lives:
            await self._publish()
        await asyncio.to_thread(self.experiments.end_what_is_over, f"gateway {self._gateway}")

    async def look(self) -> None:
        """Once: what CANARY says, what was counted, and what follows from it."""
        canary = await asyncio.to_thread(Canary.read, self._workspace)
        self._trial = canary.trial_beside(self.follower.release)
        if canary.running is not None and self._trial is None:
            await self._end_outdated(canary.running)
        wanted = self._split_of(self._trial)
        if wanted is not self._split:
            await self._publish()
        split = self._split
        if split is None:
            return
        metrics.CANARY_SHARE.set(split.share)
        if time.monotonic() - self._wrote_s >= WRITE_EVERY_S:
            self._wrote_s = time.monotonic()
            await self._judge(split)

    async def _judge(self, split: Split) -> None:
        trial, own = split.trial, split.recorder.counts()
        counts, comparisons = await asyncio.to_thread(self._compared, trial, own)
        split.recorder.tell_latencies(counts)
        metrics.CANARY_PSI.set(max((one.value for one in comparisons if one.name.startswith("psi ")), default=0.0))
        why = broken(comparisons)
        if why is not None:
            numbers = {one.name: one.to_dict() for one in comparisons}
            await self._end(trial, "rolled_back", f"a limit was broken: {why}", numbers)

    def _compared(self, trial: Trial, own: Counts) -> tuple[Counts, list[Comparison]]:
        folder, now_s = self._workspace.canary_counts(trial.id), time.time()
        write_counts(folder, self._gateway, own, now_s=now_s)
        counts = read_counts(folder, now_s=now_s)
        return counts, compare(counts, trial.limits)

    async def _end_outdated(self, trial: Trial) -> None:
        """What it was compared with is served no more."""
        current = await asyncio.to_thread(served_release, self._workspace)
        if current == trial.served:
            return  # this gateway is a look behind
        state: State = "promoted" if current == trial.candidate else "stopped"
        await self._end(trial, state, f"{current} was promoted", {})

    async def _end(self, trial: Trial, state: State, reason: str, numbers: dict[str, Any]) -> None:
        by = f"gateway {self._gateway}"
        ended = await asyncio.to_thread(self._canaries.end, trial.id, state, by=by, reason=reason, numbers=numbers)
        if ended is not None:
            logger.warning("canary %s of %s %s: %s", trial.id, trial.candidate, state.replace("_", " "), reason)
            if state == "rolled_back":
                metrics.CANARY_ROLLBACKS.inc()
        if self._trial is not None and self._trial.id == trial.id:
            self._trial = None
            await self._publish()
