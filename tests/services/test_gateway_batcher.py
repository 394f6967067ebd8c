from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from services.gateway import batcher as batcher_module
from services.gateway.batcher import MicroBatcher
from sonder.core.errors import StageUnavailable


class Computation:
    """Doubles numbers; a batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started, self.let_go = asyncio.Event(), asyncio.Event()

    async def __call__(self, batch: Sequence[int], waited_s: float) -> list[int]:
        self.batches.append(list(batch))
        self.started.set()
        await self.let_go.wait()
        if 13 in batch:
            raise StageUnavailable("unlucky")
        return [2 * number for number in batch]


def test_an_idle_batcher_starts_at_once_and_what_comes_meanwhile_leaves_together() -> None:
    async def scenario() -> None:
        compute = Computation()
        batcher = MicroBatcher(compute, max_running=1)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(5)]
        await compute.started.wait()
        assert compute.batches == [[0]]
        compute.let_go.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
        assert compute.batches == [[0], [1, 2, 3, 4]]

    asyncio.run(scenario())


def test_a_batch_holds_no_more_than_allowed() -> None:
    async def scenario() -> None:
        compute = Computation()
        compute.let_go.set()
        batcher = MicroBatcher(compute, max_batch=2, max_running=1)
        answers = await asyncio.gather(*(batcher.submit(number) for number in range(6)))
        assert answers == [0, 2, 4, 6, 8, 10]
        assert max(len(batch) for batch in compute.batches) == 2

    asyncio.run(scenario())


def test_a_failing_batch_fails_its_own_requests_only() -> None:
    async def scenario() -> None:
        compute = Computation()
        compute.let_go.set()
        batcher = MicroBatcher(compute, max_running=1, max_batch=1)
        outcomes = await asyncio.gather(*(batcher.submit(n) for n in (1, 13, 2)), return_exceptions=True)
        assert outcomes[0] == 2
        assert isinstance(outcomes[1], StageUnavailable)
        assert outcomes[2] == 4

    asyncio.run(scenario())


def test_too_many_waiting_requests_are_refused_at_once() -> None:
    async def scenario() -> None:
        compute = Computation()
        batcher = MicroBatcher(compute, max_running=1, max_waiting=2)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StageUnavailable, match="2 requests are waiting"):
            await batcher.submit(9)
        compute.let_go.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4]

    asyncio.run(scenario())


def test_a_request_whose_caller_left_is_not_computed() -> None:
    async def scenario() -> None:
        compute = Computation()
        batcher = MicroBatcher(compute, max_running=1)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        compute.let_go.set()
        assert await asyncio.gather(tasks[0], tasks[2]) == [0, 4]
        assert compute.batches == [[0], [2]]

    asyncio.run(scenario())


def test_callers_who_come_back_one_by_one_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _wait_for_all(monkeypatch)

    async def scenario() -> None:
        compute = Computation()
        compute.let_go.set()
        batcher = MicroBatcher(compute, max_running=1, lingers=True)
        await asyncio.gather(*(batcher.submit(number) for number in range(5)))
        assert compute.batches == [[0], [1, 2, 3, 4]]
        returning = []
        for number in range(4):
            returning.append(asyncio.create_task(batcher.submit(number)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*returning)
        assert compute.batches[2:] == [[0, 1, 2, 3]]

    asyncio.run(scenario())


def _wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that only that all are back can end the waiting."""
    monkeypatch.setattr(batcher_module, "LINGER", 1e9)
    monkeypatch.setattr(batcher_module, "LINGER_MOST_S", 1e9)


@pytest.mark.parametrize("share", [batcher_module.LINGER, 1e9])
def test_who_does_not_come_back_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Not even after a batch that took very long."""
    monkeypatch.setattr(batcher_module, "LINGER", share)

    async def scenario() -> None:
        compute = Computation()
        batcher = MicroBatcher(compute, max_running=1, lingers=True)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in range(4)]
        await compute.started.wait()
        compute.let_go.set()
        await asyncio.gather(*tasks)
        assert await asyncio.wait_for(batcher.submit(9), 30) == 18  # alone, after a batch of three
        assert await batcher.submit(8) == 16  # and after one of one, which nobody lingers for
        assert compute.batches == [[0], [1, 2, 3], [9], [8]]

    asyncio.run(scenario())


def test_who_waited_is_waited_with_for_those_who_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _wait_for_all(monkeypatch)
    batches: list[list[int]] = []
    gates = [asyncio.Event() for _ in range(3)]

    async def compute(numbers: Sequence[int], waited_s: float) -> list[int]:
        batches.append(list(numbers))
        await gates[len(batches) - 1].wait()
        return list(numbers)

    async def scenario() -> None:
        batcher = MicroBatcher(compute, max_running=1, lingers=True)
        first = [asyncio.create_task(batcher.submit(number)) for number in range(4)]
        await asyncio.sleep(0)
        gates[0].set()
        await first[0]  # 1, 2 and 3 are under way
        waiting = asyncio.create_task(batcher.submit(4))
        await asyncio.sleep(0)
        gates[1].set()
        await asyncio.gather(*first)
        back = [asyncio.create_task(batcher.submit(number)) for number in (5, 6, 7)]
        gates[2].set()
        await asyncio.wait_for(asyncio.gather(waiting, *back), 10)
        assert batches == [[0], [1, 2, 3], [4, 5, 6, 7]]

    asyncio.run(scenario())


def test_a_batch_is_in_nobodys_context() -> None:
    asker: ContextVar[str] = ContextVar("asker", default="nobody")
    seen = []

    async def compute(numbers: Sequence[int], waited_s: float) -> list[int]:
        seen.append(asker.get())
        return list(numbers)

    async def ask(name: str) -> int:
        asker.set(name)
        return await batcher.submit(1)

    batcher = MicroBatcher(compute, max_running=1)

    async def scenario() -> None:
        await asyncio.gather(*(asyncio.create_task(ask(name)) for name in ("one", "two", "three")))

    asyncio.run(scenario())
    assert seen == ["nobody", "nobody"]


def test_who_waits_for_a_batch_that_is_cancelled_is_told() -> None:
    async def compute(numbers: Sequence[int], waited_s: float) -> list[int]:
        raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(StageUnavailable, match="cancelled"):
            await asyncio.wait_for(MicroBatcher(compute).submit(1), 10)

    asyncio.run(scenario())
