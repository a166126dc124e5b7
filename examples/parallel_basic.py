"""Groups of coroutines: at most so many at once, results in the order of adding, or by name.

Run it: python examples/parallel_basic.py
"""

from __future__ import annotations

import asyncio

from necrocode.parallel import Command, ExecutionState, ParallelExecutionManager


async def task(number: int) -> int:
    await asyncio.sleep(0.1)
    return number * 2


async def main() -> None:
    state = ExecutionState()
    async with ParallelExecutionManager(state, max_workers=3) as group:
        for number in (1, 2, 3):
            group.add(task(number))
        results = await group.gather()
    print("results:", [result.result for result in results])

    # Functions that are not async run in threads, programs in a session of their own.
    async with state.parallel(name="mixed") as group:
        group.add(task(4), name="coroutine")
        group.add(lambda: sum(range(1000)), name="function")
        group.add(Command(["echo", "hello"]), name="program")
        named = await group.gather_dict()
    print("function:", named["function"].result, "program:", named["program"].result.stdout.strip())

    # What was not gathered is completed at the end of the body.
    async with state.parallel(max_workers=2, name="last") as group:
        group.add(task(5))
    print("completed:", group.group.completed, "of", group.group.total)


if __name__ == "__main__":
    asyncio.run(main())
