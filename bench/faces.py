"""What the faces cost more than the bare tools below them, by work that does nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.compare import interleaved, timed, told
from necrocode.concurrency import WorkerPool, WorkerPoolConfig
from necrocode.parallel import ExecutionState

COUNT, ROUNDS = 10_000, 7


def main() -> None:
    for workers in (4, 50):
        pools = {"ThreadPoolExecutor": partial(by_executor, workers), "WorkerPool": partial(by_pool, workers)}
        told(f"{COUNT} calls that do nothing, {workers} workers", compared(pools), "ms")
    for limit in (5, 100):
        for work, does in ((nothing, "do nothing"), (_turn, "wait for one turn of the loop")):
            groups = {
                "asyncio.gather": partial(by_gather, work),
                "asyncio.gather and a semaphore": partial(_limited, work, limit),
                "ExecutionState.parallel": partial(by_group, work, limit),
            }
            told(f"{COUNT} coroutines that {does}, {limit} at once", compared(groups), "ms")


def compared(peers: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    return interleaved({name: partial(_timed, peer) for name, peer in peers.items()}, ROUNDS)


def _timed(peer: Callable[[], object]) -> float:
    gc.collect()  # nobody pays for what the one before left
    return timed(peer)


def _same(number: int) -> int:
    return number


def by_executor(workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_same, number) for number in range(COUNT)]
        assert [future.result() for future in futures] == [*range(COUNT)]


def by_pool(workers: int) -> None:
    with WorkerPool(WorkerPoolConfig(max_workers=workers)) as pool:
        for number in range(COUNT):
            pool.submit_task("nothing", _same, (number,))
        assert [one.result for one in pool.wait_for_all()] == [*range(COUNT)]


async def nothing(number: int) -> int:
    return number


async def _turn(number: int) -> int:
    await asyncio.sleep(0)
    return number


Work = Callable[[int], Coroutine[Any, Any, int]]


def by_gather(work: Work) -> None:
    async def all_of_them() -> None:
        assert await asyncio.gather(*(work(number) for number in range(COUNT))) == [*range(COUNT)]

    asyncio.run(all_of_them())


def _limited(work: Work, limit: int) -> None:
    async def one(room: asyncio.Semaphore, number: int) -> int:
        async with room:
            return await work(number)

    async def all_of_them() -> None:
        room = asyncio.Semaphore(limit)
        assert await asyncio.gather(*(one(room, number) for number in range(COUNT))) == [*range(COUNT)]

    asyncio.run(all_of_them())


def by_group(work: Work, limit: int) -> None:
    async def all_of_them() -> None:
        async with ExecutionState().parallel(max_workers=limit) as group:
            for number in range(COUNT):
                group.add(work(number))
            assert [one.result for one in await group.gather()] == [*range(COUNT)]

    asyncio.run(all_of_them())
