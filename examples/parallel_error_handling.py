"""When members fail: fail slow, fail fast, retries, timeout, circuit breaker, and a run taken up again.

Run it: python examples/parallel_error_handling.py
"""

from __future__ import annotations

import asyncio
import functools

from necrocode.parallel import ErrorStrategy, ExecutionState


async def task(number: int, seconds: float = 0.05) -> int:
    await asyncio.sleep(seconds)
    return number * 2


async def bad() -> None:
    raise ValueError("this one never works")


async def strategies(state: ExecutionState) -> None:
    """Fail slow gives every result; fail fast raises the first error and cancels the rest."""
    async with state.parallel() as group:
        group.add(bad())
        group.add(task(1))
        print("fail slow:", [result.erro_message or result.result for result in await group.gather()])

    async with state.parallel(error_strategy=ErrorStrategy.FAIL_FAST) as group:
        group.add(bad())
        group.add(task(1, seconds=60))
        try:
            await group.gather()
        except ValueError as error:
            print(f"fail fast: {error}; cancelled: {group.group.cancelled}")


async def retries(state: ExecutionState) -> None:
    """What is to be repeated is added as a function; a coroutine can be awaited once only."""
    attempts = 0

    async def flaky() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("not yet")
        return "at last"

    async with state.parallel(max_retries=3, retry_delay=0.01) as group:
        group.add(flaky)
        group.add(functools.partial(task, 5))
        results = await group.gather()
    print(f"retried: {results[0].result!r} in {results[0].attempts} attempts")


async def limits(state: ExecutionState) -> None:
    """A timeout is for the whole group, and what was there before is kept; the breaker refuses after failures."""
    async with state.parallel(timeout=0.5) as group:
        group.add(task(1))
        group.add(task(2, seconds=60))
        try:
            await group.gather()
        except TimeoutError:  # asyncio.TimeoutError is another name for it
            print("in time:", [result.result for result in group.results if result.ok])

    async with state.parallel(max_workers=1, circuit_breaker_threshold=2) as group:
        for _ in range(4):
            group.add(bad())
        results = await group.gather()
    print("refused by the breaker:", sum("Circuit breaker" in str(result.error) for result in results))


async def taken_up_again() -> None:
    """A state that was stored: what had finished is not run again."""
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
    print("first run:", await program(state), "of 3")
    restored = ExecutionState.model_validate_json(state.model_dump_json())
    print("second run:", await program(restored), "of 3; steps that ran in all:", ran)


async def main() -> None:
    state = ExecutionState()
    await strategies(state)
    await retries(state)
    await limits(state)
    await taken_up_again()


if __name__ == "__main__":
    asyncio.run(main())
