"""Results as they come, shown by printers: a bar for each group, or a line for each event.

Run it: python examples/parallel_streaming.py
"""

from __future__ import annotations

import asyncio

from necrocode.parallel import ExecutionState, ParallelDisplayMode, ParallelEventPrinter


async def task(number: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return number * 2


async def shown(mode: ParallelDisplayMode) -> None:
    """The printer is only a subscriber; the group knows nothing of it."""
    state = ExecutionState()
    state.event_bus.subscribe(ParallelEventPrinter(parallel_mode=mode))
    async with state.parallel(max_workers=4, name=mode, timeout=30) as group:
        for number in range(4):
            group.add(task(number, 0.05 * (4 - number)))
        async for result in group.stream():
            print(f"got {result.result} after {result.execution_time:.2f} s")


async def first_two() -> None:
    """A stream that is left early cancels the rest."""
    async with ExecutionState().parallel(name="race") as group:
        for number in range(4):
            group.add(task(number, 0.05 if number < 2 else 60))
        seen = 0
        async for result in group.stream():
            print("among the first:", result.result)
            seen += 1
            if seen == 2:
                break
    print("cancelled:", group.group.cancelled)


async def main() -> None:
    await shown(ParallelDisplayMode.PROGRESS)
    await shown(ParallelDisplayMode.REALTIME)
    await first_two()


if __name__ == "__main__":
    asyncio.run(main())
