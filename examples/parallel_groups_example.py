"""Groups of coroutines: basic use, streaming with progress, and what happens when members fail.

Run it: python examples/parallel_groups_example.py
"""

from __future__ import annotations

import asyncio
import functools

from necrocode.parallel import (
    Command,
    ErrorStrategy,
    ExecutionState,
    ParallelEventPrinter,
    ParallelExecutionManager,
)


async def task(number: int, seconds: float = 0.1) -> int:
    await asyncio.sleep(seconds)
    return number * 2


async def basic() -> None:
    """Results in the order of adding; at most three at once."""
    print("Basic")
    state = ExecutionState()
    async with ParallelExecutionManager(state, max_workers=3) as group:
        for number in (1, 2, 3):
            group.add(task(number))
        results = await group.gather()
    print("  results:", [result.result for result in results])

    async with state.parallel(name="mixed") as group:
        group.add(task(4), name="coroutine")
        group.add(lambda: sum(range(1000)), name="function")
        group.add(Command(["echo", "hello"]), name="program")
        named = await group.gather_dict()
    print("  function:", named["function"].result, " program:", named["program"].result.stdout.strip())


async def streaming() -> None:
    """Results as they come, with a bar; the printer is only a subscriber."""
    print("Streaming")
    state = ExecutionState()
    state.event_bus.subscribe(ParallelEventPrinter(parallel_mode="progress"))
    async with state.parallel(max_workers=4, name="stream", timeout=30) as group:
        for number in range(4):
            group.add(task(number, 0.05 * (4 - number)))
        async for result in group.stream():
            print(f"  got {result.result} after {result.execution_time:.2f} s")


async def errors() -> None:
    """Fail slow gives every result; fail fast raises the first error and cancels the rest; retries; replay."""
    print("Errors")
    state, attempts = ExecutionState(), 0

    async def bad() -> None:
        raise ValueError("this one never works")

    async def flaky() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("not yet")
        return "at last"

    async with state.parallel() as group:
        group.add(bad())
        group.add(task(1))
        print("  fail slow:", [result.erro_message or result.result for result in await group.gather()])

    async with state.parallel(error_strategy=ErrorStrategy.FAIL_FAST) as group:
        group.add(bad())
        group.add(task(1, seconds=60))
        try:
            await group.gather()
        except ValueError as error:
            print(f"  fail fast: {error}; cancelled: {group.group.cancelled}")

    async with state.parallel(max_retries=3, retry_delay=0.01) as group:
        group.add(flaky)
        group.add(functools.partial(task, 5))
        results = await group.gather()
    print(f"  retried: {results[0].result!r} in {results[0].attempts} attempts")


async def replay() -> None:
    """A state that was stored: what had finished is not run again."""
    print("Replay")
    ran: list[int] = []

    async def step(number: int) -> int:
        ran.append(number)
        if number == 2 and len(ran) <= 3:
            raise RuntimeError("the power went out")
        return number

    async def program(state: ExecutionState) -> int:
        async with state.parallel(name="steps") as group:
            for number in (1, 2, 3):
                group.add(step(number))
            return sum(result.ok for result in await group.gather())

    state = ExecutionState()
    print("  first run:", await program(state), "of 3")
    restored = ExecutionState.model_validate_json(state.model_dump_json())
    print("  second run:", await program(restored), "of 3; steps that ran in all:", ran)


async def main() -> None:
    await basic()
    await streaming()
    await errors()
    await replay()


if __name__ == "__main__":
    asyncio.run(main())
