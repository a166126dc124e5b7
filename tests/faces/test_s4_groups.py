"""S4, the groups themselves: results, limits, errors, timeouts, retries, the breaker, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from loops import Gauge, on_loop, pid_in, until

from necrocode import parallel
from necrocode.aio import CommandFailed
from necrocode.context import check_timeout
from necrocode.errors import ConfigError, NecrocodeError, TaskTimeoutError
from necrocode.parallel import (
    CircuitOpenError,
    Command,
    ErrorStrategy,
    ExecutionState,
    GroupStatus,
    InvalidSettingError,
    ParallelDisplayMode,
    ParallelEventGroup,
    ParallelExecutionManager,
    ParallelGroupTracker,
)
from necrocode.testing import is_alive


async def double(n, seconds=0.0):
    await asyncio.sleep(seconds)
    return n * 2


async def fail(text="boom"):
    raise ValueError(text)


@on_loop
async def test_s4_30_a_group_costs_little():
    """Less than 5 % for one event, here of 100 ms: what the group itself takes of the processor, at its best."""

    async def cost():
        began = time.thread_time()
        async with ExecutionState().parallel() as group:
            group.add(asyncio.sleep(0.1))
            await group.gather()
        return time.thread_time() - began

    assert min([await cost() for _ in range(5)]) < 0.005


# ---- the document's own checks


def test_s4_01_enums_have_the_printed_members():
    assert [status.name for status in GroupStatus] == ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
    assert [strategy.name for strategy in ErrorStrategy] == ["FAIL_SLOW", "FAIL_FAST"]
    assert [mode.name for mode in ParallelDisplayMode] == ["REALTIME", "PROGRESS"]


def test_s4_04_import_star_gives_the_names():
    names: dict[str, object] = {}
    exec("from necrocode.parallel import *", names)
    phase_1 = {"GroupStatus", "ErrorStrategy", "ParallelDisplayMode", "ParallelEventGroup", "ParallelGroupTracker"}
    wanted = phase_1 | {
        "ExecutionState", "ExecutionEvent", "EventBus", "EventPrinter", "ExecutionStatus", "EventType",
        "ExecutionResult", "HistorySet", "BaseActor", "ParallelExecutionManager", "ParallelEventPrinter",
    }  # fmt: skip
    assert wanted <= set(names)
    assert set(parallel.__all__) <= set(dir(parallel))
    with pytest.raises(AttributeError):
        parallel.Nothing


def test_s4_phase_2_as_printed():
    """S4-05, S4-06, S4-08: the document's validation of phase 2, as it stands."""

    async def test():
        state = ExecutionState()

        async def task(n):
            await asyncio.sleep(0.1)
            return n * 2

        async with ParallelExecutionManager(state, max_workers=3) as p:
            p.add(task(1))
            p.add(task(2))
            p.add(task(3))
            results = await p.gather()

        assert len(results) == 3
        assert [result.result for result in results] == [2, 4, 6]
        assert all(result.ok for result in results)
        print("✓ Phase 2 complete")

    asyncio.run(test())


def test_s4_phase_3_to_5_as_printed():
    """S4-10, S4-11, S4-12, S4-14, S4-15: the document's validations of phases 3, 4 and 5."""

    async def test():
        state = ExecutionState()
        async with state.parallel(max_workers=2, name="phase 3") as p:
            p.add(double(1))
            results = await p.gather()
        assert p.group.name == "phase 3"

        async with state.parallel() as parallel:
            parallel.add(double(1))
            async for result in parallel.stream():
                print(f"Got: {result}")

        async with state.parallel() as parallel:
            parallel.add(double(1), name="task1")
            results = await parallel.gather_dict()
            assert "task1" in results

        async with state.parallel() as parallel:
            parallel.add(fail())
            parallel.add(double(1))
            results = await parallel.gather()
            assert results[0].ok == False  # noqa: E712  # error
            assert results[1].ok == True  # noqa: E712  # success

        async with state.parallel(error_strategy=ErrorStrategy.FAIL_FAST) as parallel_fast:
            parallel_fast.add(fail())
            try:
                await parallel_fast.gather()
            except Exception:  # noqa: BLE001 - as printed
                print("✓ Fail fast works")
            else:
                raise AssertionError("fail fast did not raise")

    asyncio.run(test())


# ---- models


def test_s4_02_models_can_be_written_and_read():
    group = ParallelEventGroup(name="g", total=4, completed=3, failed=1, errors=["x"])
    assert ParallelEventGroup.model_validate_json(group.model_dump_json()) == group
    assert group.success_rate == 75.0 and group.execution_time is None
    tracker = ParallelGroupTracker(group_id="g", total=5, completed=3)
    assert ParallelGroupTracker.model_validate_json(tracker.model_dump_json()) == tracker
    assert tracker.completion_percentage == 60.0 and not tracker.is_complete
    assert ParallelGroupTracker(group_id="g").completion_percentage == 100.0


def test_s4_02_a_group_marks_its_life():
    group = ParallelEventGroup()
    assert group.status is GroupStatus.PENDING and not group.is_over
    group.mark_started()
    assert group.execution_time is not None and group.status is GroupStatus.RUNNING
    group.mark_failed("why")
    assert group.is_over and group.errors == ["why"] and group.end_time >= group.start_time
    assert group.execution_time == group.execution_time


def test_an_error_message_has_both_names():
    result = parallel.ExecutionResult(ok=False, error_message="why")
    assert result.erro_message == result.error_message == "why"
    again = parallel.ExecutionResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert parallel.ExecutionResult.model_validate({"erro_message": "why", "ok": False}) == result
    failed = parallel.ExecutionResult(ok=False, error=OSError("why"))
    assert "error" not in failed.model_dump() and failed.model_dump()["ok"] is False


# ---- limits


@on_loop
async def test_s4_07_limit_of_a_group():
    gauge = Gauge()

    async def task():
        with gauge:
            await asyncio.sleep(0.01)

    async with ExecutionState().parallel(max_workers=2) as p:
        for _ in range(5):
            p.add(task())
        await p.gather()
    assert gauge.most == 2


@on_loop
async def test_s4_07_the_limit_is_per_group_and_five_by_default():
    first, second = Gauge(), Gauge()

    async def task(gauge):
        with gauge:
            await until(lambda: first.most + second.most == 10)

    async def group(gauge):
        async with ExecutionState().parallel() as p:
            for _ in range(8):
                p.add(task(gauge))

    await asyncio.gather(group(first), group(second))
    assert (first.most, second.most) == (5, 5)


# ---- results


@on_loop
async def test_s4_08_and_11_order_of_adding_and_order_of_ends():
    ended = []

    async def after_the_next(n):
        await until(lambda: len(ended) == 4 - n)
        ended.append(n)
        return 2 * n

    async with ExecutionState().parallel() as p:
        for n in range(5):
            p.add(after_the_next(n))
        seen = [result.result async for result in p.stream()]
        assert seen == [8, 6, 4, 2, 0]
        assert [result.result for result in await p.gather()] == [0, 2, 4, 6, 8]
        assert [result.result async for result in p.stream()] == seen


@on_loop
async def test_s4_11_a_stream_gives_results_before_all_are_there():
    gate = asyncio.Event()

    async def late():
        await gate.wait()
        return "late"

    async with ExecutionState().parallel(timeout=30) as p:
        p.add(late())
        p.add(double(1))
        stream = p.stream()
        assert (await anext(stream)).result == 2
        gate.set()
        assert (await anext(stream)).result == "late"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@on_loop
async def test_s4_12_names_and_numbers():
    async with ExecutionState().parallel() as p:
        p.add(double(1), name="a")
        p.add(double(2))
        p.add(fail(), name="c")
        results = await p.gather_dict()
    assert list(results) == ["a", "1", "c"]
    assert [result.index for result in results.values()] == [0, 1, 2]
    assert results["c"].erro_message == "ValueError: boom" and isinstance(results["c"].error, ValueError)


@on_loop
async def test_s4_09_what_was_not_gathered_is_completed_at_the_end():
    done = []

    async def task():
        done.append(1)

    async with ExecutionState().parallel() as p:
        p.add(task())
        assert done == []
    assert done == [1] and p.group.status is GroupStatus.COMPLETED
    assert [result.ok for result in p.results] == [True]


@on_loop
async def test_s4_24_counts_are_true():
    async with ExecutionState().parallel(name="counted") as p:
        for n in range(4):
            p.add(double(n))
        p.add(fail())
        await p.gather()
    assert (p.group.total, p.group.completed, p.group.failed) == (5, 4, 1)
    assert p.group.success_rate == 80.0 and p.group.errors == ["ValueError: boom"]
    assert p.group.status is GroupStatus.COMPLETED and p.group.execution_time > 0


# ---- errors


@on_loop
async def test_s4_14_fail_slow_gives_all():
    async with ExecutionState().parallel() as p:
        for work in (fail("one"), double(1), fail("two")):
            p.add(work)
        results = await p.gather()
    assert [result.ok for result in results] == [False, True, False]
    assert "one" in results[0].erro_message and "two" in results[2].error_message


@on_loop
async def test_s4_15_fail_fast_cancels_what_runs_and_starts_nothing_more():
    began, cancelled = [], []

    async def task(n):
        began.append(n)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    error = ValueError("the original")

    async def bad():
        await until(lambda: began == [1])
        raise error

    async with ExecutionState().parallel(max_workers=2, error_strategy=ErrorStrategy.FAIL_FAST) as p:
        p.add(bad())
        for n in (1, 2, 3):
            p.add(task(n))
        with pytest.raises(ValueError, match="the original") as caught:
            await p.gather()
        assert caught.value is error and began == cancelled == [1]
    assert p.group.status is GroupStatus.FAILED
    assert (p.group.failed, p.group.cancelled, p.group.completed) == (1, 3, 0)
    assert [result.cancelled for result in p.results] == [False, True, True, True]


@on_loop
async def test_s4_15_fail_fast_in_a_stream():
    gate = asyncio.Event()

    async def bad():
        await gate.wait()
        raise ValueError("boom")

    seen = []
    async with ExecutionState().parallel(error_strategy="fail_fast") as p:
        p.add(double(1))
        p.add(bad())
        p.add(asyncio.sleep(60))
        with pytest.raises(ValueError, match="boom"):
            async for result in p.stream():
                seen.append(result.result)
                gate.set()
    assert seen == [2]


@on_loop
async def test_fail_fast_at_the_end_of_the_body():
    with pytest.raises(ValueError, match="boom"):
        async with ExecutionState().parallel(error_strategy=ErrorStrategy.FAIL_FAST) as p:
            p.add(fail())


@on_loop
async def test_s4_31_an_error_that_cannot_be_printed_is_a_result():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    async def odd():
        raise Odd

    async with ExecutionState().parallel() as p:
        p.add(odd())
        p.add(double(1))
        results = await p.gather()
    assert [result.ok for result in results] == [False, True]


# ---- timeouts


@on_loop
async def test_s4_13_timeout_cancels_and_keeps_what_was_there():
    cancelled = []

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(1)

    async with ExecutionState().parallel(timeout=1.0) as p:
        p.add(double(1))
        p.add(slow())
        with pytest.raises(asyncio.TimeoutError) as caught:
            await p.gather()
        assert isinstance(caught.value, TaskTimeoutError) and str(caught.value)
        assert [result.result for result in caught.value.partial_traces] == [2]
        assert cancelled == [1]
    assert [result.ok for result in p.results] == [True, False]
    assert (p.group.status, p.group.completed, p.group.cancelled) == (GroupStatus.FAILED, 1, 1)


@on_loop
async def test_s4_11_a_stream_with_a_timeout_yields_before_it():
    seen = []
    async with ExecutionState().parallel(timeout=1.0) as p:
        p.add(asyncio.sleep(60))
        p.add(double(1))
        with pytest.raises(TimeoutError):
            async for result in p.stream():
                seen.append((result.result, p.group.is_over))
    assert seen == [(2, False)]


# ---- retries and the breaker


@on_loop
async def test_s4_16_retry_with_growing_delay():
    tries = []

    async def flaky():
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 4:
            raise OSError("not yet")
        return "ok"

    async with ExecutionState().parallel(max_retries=3, retry_delay=0.02) as p:
        p.add(flaky)
        (result,) = await p.gather()
    assert (result.ok, result.result, result.attempts) == (True, "ok", 4)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert all(pause >= least for pause, least in zip(pauses, (0.019, 0.039, 0.079), strict=True))


@on_loop
async def test_s4_16_two_tasks_fail_once_each():
    tries = dict.fromkeys("ab", 0)

    async def flaky(name):
        tries[name] += 1
        if tries[name] == 1:
            raise OSError
        return name

    async with ExecutionState().parallel(max_retries=2, retry_delay=0) as p:
        for name in "ab":
            p.add(functools.partial(flaky, name), name=name)
        results = await p.gather_dict()
    assert all(result.ok and result.attempts == 2 for result in results.values())
    assert tries == {"a": 2, "b": 2}


@on_loop
async def test_a_member_that_waits_for_its_retry_takes_no_worker():
    tries = []

    async def flaky():
        tries.append(1)
        if len(tries) == 1:
            raise OSError

    seen = []
    async with ExecutionState().parallel(max_workers=1, max_retries=1, retry_delay=0.3) as p:
        p.add(flaky, name="flaky")
        p.add(functools.partial(double, 1), name="ready")
        async for result in p.stream():
            seen.append((result.name, len(tries)))
    assert seen == [("ready", 1), ("flaky", 2)]


@on_loop
async def test_a_coroutine_cannot_be_retried_and_add_says_so():
    async with ExecutionState().parallel(max_retries=1) as p:
        with pytest.raises(InvalidSettingError, match="awaited once only") as caught:
            p.add(double(1))
        assert "function itself" in caught.value.hint


@on_loop
async def test_s4_17_the_breaker_opens_and_rejects():
    ran = []

    async def bad():
        ran.append(1)
        raise ValueError

    async with ExecutionState().parallel(max_workers=1, circuit_breaker_threshold=3) as p:
        for _ in range(5):
            p.add(bad())
        results = await p.gather()
    assert len(ran) == 3
    rejected = [result for result in results if "Circuit breaker" in result.erro_message]
    assert len(rejected) == 2 and all(isinstance(result.error, CircuitOpenError) for result in rejected)
    assert [result.attempts for result in results] == [1, 1, 1, 0, 0]


@on_loop
async def test_s4_17_the_breaker_recovers():
    async with ExecutionState().parallel(max_workers=1, circuit_breaker_threshold=1, circuit_breaker_timeout=0.0) as p:
        for work in (fail(), double(1), double(2)):
            p.add(work)
        results = await p.gather()
    assert [result.ok for result in results] == [False, True, True]


@on_loop
async def test_s4_17_the_breaker_counts_tasks_not_attempts():
    async with ExecutionState().parallel(max_workers=1, max_retries=5, retry_delay=0, circuit_breaker_threshold=2) as p:
        p.add(fail, name="bad")
        p.add(functools.partial(double, 1), name="good")
        results = await p.gather_dict()
    assert results["bad"].attempts == 6 and results["good"].ok


@on_loop
async def test_s4_17_the_breaker_is_the_groups_own_and_can_be_left_out():
    state = ExecutionState()
    async with state.parallel(max_workers=1, circuit_breaker_threshold=1) as p:
        p.add(fail())
    async with state.parallel(max_workers=1, circuit_breaker_threshold=1) as p:
        p.add(double(1))
        assert (await p.gather())[0].ok
    async with state.parallel(max_workers=1, circuit_breaker_threshold=None) as p:
        for _ in range(10):
            p.add(fail())
        assert all("boom" in result.erro_message for result in await p.gather())


# ---- nothing is left, nothing starts that should not


@on_loop
async def test_the_body_raises_and_nothing_is_started():
    ran = []

    async def task():
        ran.append(1)

    state, told = ExecutionState(), []
    state.event_bus.subscribe(lambda event: told.append(event.execution_status))
    with pytest.raises(KeyError):
        async with state.parallel() as p:
            p.add(task())
            p.add(task)
            raise KeyError("body")
    await asyncio.sleep(0)
    assert told == ["started", "cancelled", "cancelled", "cancelled"]  # the group, its members, and its end
    assert [member.attempts for member in p.tasks] == [0, 0]
    assert ran == [] and p.group.status is GroupStatus.CANCELLED and p.group.cancelled == 2


@on_loop
async def test_the_body_raises_while_the_group_runs():
    running = []

    async def task():
        running.append(1)
        try:
            await asyncio.sleep(60)
        finally:
            running.pop()

    with pytest.raises(KeyError):
        async with ExecutionState().parallel() as p:
            p.add(task())
            p.add(double(1))
            async for _ in p.stream():
                assert running
                raise KeyError("body")
    assert running == [] and p.group.status is GroupStatus.CANCELLED


@on_loop
async def test_a_stream_left_early_cancels_the_rest():
    running = []

    async def task():
        running.append(1)
        try:
            await asyncio.sleep(60)
        finally:
            running.pop()

    async with ExecutionState().parallel() as p:
        p.add(double(1))
        for _ in range(4):
            p.add(task())
        async for result in p.stream():
            assert result.result == 2
            break
    assert running == [] and p.group.status is GroupStatus.CANCELLED
    assert (p.group.completed, p.group.cancelled) == (1, 4)


@on_loop
async def test_whoever_gathers_is_cancelled():
    ended = []

    async def task():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    began = asyncio.Event()

    async def group():
        async with ExecutionState().parallel() as p:
            p.add(task())
            p.add(began.set)
            await p.gather()

    outer = asyncio.create_task(group())
    await began.wait()
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended == [1]


def test_keyboard_interrupt_ends_the_group():
    ended = []

    async def task():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    async def interrupted():
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    async def main():
        async with ExecutionState().parallel() as p:
            p.add(task())
            p.add(interrupted())
            await p.gather()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert ended == [1]


@on_loop
async def test_a_deaf_coroutine_is_cancelled_again_and_then_told(caplog):
    hits, gate = [], asyncio.Event()

    async def deaf():
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                hits.append(1)

    with caplog.at_level(logging.WARNING):
        async with ExecutionState().parallel(timeout=0.5, grace=1.5) as p:
            p.add(deaf(), name="deaf")
            with pytest.raises(TimeoutError):
                await p.gather()
    assert len(hits) >= 2 and p.left == ("deaf",) and "deaf" in caplog.text
    assert p.results[0].cancelled
    gate.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)


@on_loop
async def test_cancel_from_outside():
    async with ExecutionState().parallel(max_workers=1) as p:
        p.add(asyncio.sleep(60), name="runs")
        p.add(double(1), name="waits")
        asyncio.get_running_loop().call_later(0.02, p.cancel, "enough")
        results = await p.gather_dict()
    assert all(result.cancelled and "enough" in result.erro_message for result in results.values())
    assert p.group.status is GroupStatus.CANCELLED
    p.cancel()


@on_loop
async def test_a_member_that_cancels_itself_is_cancelled_and_no_other():
    async def itself():
        raise asyncio.CancelledError

    async with ExecutionState().parallel() as p:
        p.add(itself())
        p.add(double(1, 0.01))
        results = await p.gather()
    assert results[0].cancelled and results[1].ok


# ---- bad input


@pytest.mark.parametrize("workers", [0, -1, True, "3", 2.5, None])
def test_s4_31_impossible_worker_numbers(workers):
    with pytest.raises(InvalidSettingError) as caught:
        ExecutionState().parallel(max_workers=workers)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, NecrocodeError) and caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": True}, {"timeout": "1"}, {"timeout": float("nan")}, {"name": 3},
     {"max_retries": -1}, {"max_retries": "1"}, {"retry_delay": -1}, {"retry_delay": "x"}, {"error_strategy": "slow"},
     {"circuit_breaker_threshold": -1}, {"circuit_breaker_threshold": "x"}, {"circuit_breaker_timeout": float("nan")},
     {"grace": -1}, {"grace": None}, {"executor": 3}],
)  # fmt: skip
def test_impossible_settings(setting):
    with pytest.raises(InvalidSettingError) as caught:
        ExecutionState().parallel(**setting)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, ConfigError)


def test_a_group_needs_a_state():
    with pytest.raises(InvalidSettingError, match="ExecutionState"):
        ParallelExecutionManager(None)


@on_loop
async def test_what_cannot_be_a_member():
    async with ExecutionState().parallel() as p:
        for nothing in (3, None, "text"):
            with pytest.raises(TypeError):
                p.add(nothing)
        with pytest.raises(TypeError):
            p.add(double, name=3)
        p.add(double(1), name="a")
        with pytest.raises(ValueError, match="'a'"):
            p.add(double(1), name="a")
        p.add(double(1), name="2")
        with pytest.raises(ValueError, match="'2'"):
            p.add(double(2))
        assert len(await p.gather()) == 2
        with pytest.raises(RuntimeError, match="has started"):
            p.add(double(1))
    with pytest.raises(RuntimeError, match="is over"):
        async with p:
            pass
    assert len(await p.gather()) == 2


@on_loop
async def test_a_future_is_a_member_too():
    """It is awaited; when the body raises it is cancelled, like all that would have been a member."""
    loop = asyncio.get_running_loop()
    future, other = loop.create_future(), loop.create_future()
    loop.call_later(0.001, future.set_result, 7)
    async with ExecutionState().parallel() as p:
        p.add(future)
        assert (await p.gather())[0].result == 7
    with pytest.raises(KeyError):
        async with ExecutionState().parallel() as p:
            p.add(other)
            raise KeyError
    assert other.cancelled()


@on_loop
async def test_a_group_never_started_cannot_be_used_afterwards():
    async with ExecutionState().parallel() as p:
        pass
    await p.__aexit__(None, None, None)
    with pytest.raises(RuntimeError):
        p.add(double)


@on_loop
async def test_s4_31_empty_single_and_all_failing_groups():
    state = ExecutionState()
    async with state.parallel() as p:
        assert await p.gather() == []
    assert p.group.status is GroupStatus.COMPLETED and p.group.success_rate == 0.0
    async with state.parallel() as p:
        p.add(double(1))
        assert [result.result for result in await p.gather()] == [2]
    async with state.parallel() as p:
        for _ in range(3):
            p.add(fail())
        assert not any(result.ok for result in await p.gather())
    assert p.group.failed == 3


# ---- functions, processes, programs


@on_loop
async def test_functions_that_are_not_async_run_in_threads_side_by_side():
    here, both = threading.get_ident(), threading.Barrier(2)

    def work(n):
        both.wait(10)
        return n, threading.get_ident()

    async with ExecutionState().parallel() as p:
        p.add(functools.partial(work, 1))
        p.add(lambda: work(2))
        p.add(lambda: double(3))
        results = [result.result for result in await p.gather()]
    assert [value[0] for value in results[:2]] == [1, 2] and here not in (results[0][1], results[1][1])
    assert results[2] == 6


@on_loop
async def test_a_thread_that_asks_is_stopped_and_one_that_does_not_is_told(caplog):
    gate, asked = threading.Event(), threading.Event()

    def polite():
        try:
            while True:
                check_timeout()
                time.sleep(0.002)
        finally:
            asked.set()

    async with ExecutionState().parallel(timeout=0.5) as p:
        p.add(polite)
        with pytest.raises(TimeoutError):
            await p.gather()
    assert asked.is_set() and p.left == ()
    with caplog.at_level(logging.WARNING):
        async with ExecutionState().parallel(timeout=0.5, grace=0.2) as p:
            p.add(lambda: gate.wait(30), name="deaf")
            with pytest.raises(TimeoutError):
                await p.gather()
    assert len(p.left) == 1 and "deaf" in p.left[0] and "deaf" in caplog.text
    gate.set()
    await until(lambda: not any("deaf" in thread.name for thread in threading.enumerate()))


@on_loop
async def test_a_function_that_exits_fails_alone():
    def leave():
        raise SystemExit(3)

    async with ExecutionState().parallel() as p:
        p.add(leave)
        p.add(double(1))
        results = await p.gather()
    assert "SystemExit" in results[0].erro_message and results[1].ok


@on_loop
async def test_functions_in_processes():
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        async with ExecutionState().parallel(executor=pool) as p:
            p.add(os.getpid)
            p.add(functools.partial(divmod, 7, 2))
            p.add(lambda: 1)
            results = await p.gather()
    assert results[0].result != os.getpid() and results[1].result == (3, 1)
    assert not results[2].ok and "pickle" in results[2].erro_message.lower()


@on_loop
async def test_programs_are_members_too(tmp_path):
    async with ExecutionState().parallel() as p:
        p.add(Command(["sh", "-c", 'echo "$WORD from $PWD"; echo oops >&2'], cwd=tmp_path, env={"WORD": "hello"}))
        p.add(Command(["sh", "-c", "echo half; exit 3"]))
        p.add(Command(["no-such-program-anywhere"]))
        p.add(Command(["sleep", "60"], timeout=0.1))
        good, bad, missing, late = await p.gather()
    assert good.result.stdout == f"hello from {tmp_path}\n" and good.result.stderr == "oops\n"
    assert isinstance(bad.error, CommandFailed) and (bad.error.exit_code, bad.error.stdout) == (3, "half\n")
    assert missing.error.exit_code == 127 and late.error.kind == "timeout"
    with pytest.raises(TypeError):
        Command("echo text")


@on_loop
async def test_cancelling_a_program_ends_its_tree(tmp_path):
    place = tmp_path / "pid"
    async with ExecutionState().parallel(error_strategy=ErrorStrategy.FAIL_FAST) as p:

        async def bad():
            await until(lambda: pid_in(place))
            raise ValueError

        p.add(Command(["sh", "-c", f"sleep 60 & echo $! > {place}.new; mv {place}.new {place}; wait"], grace=0.5))
        p.add(bad())
        with pytest.raises(ValueError):
            await p.gather()
    assert not is_alive(pid_in(place))


# ---- contexts


@on_loop
async def test_s4_35_contexts_do_not_mix():
    word = contextvars.ContextVar("word", default="none")
    seen = {}

    async def task(name):
        seen[name] = [word.get()]
        word.set(name)
        await asyncio.sleep(0.01)
        seen[name].append(word.get())

    async with ExecutionState().parallel() as p:
        word.set("outer")
        p.add(task("a"))
        word.set("later")
        p.add(functools.partial(task, "b"))
        p.add(lambda: seen.setdefault("c", [word.get(), word.set("c") and word.get()]))
        await p.gather()
    assert seen == {"a": ["outer", "a"], "b": ["later", "b"], "c": ["later", "c"]}
    assert word.get() == "later"


@on_loop
async def test_s4_31_and_35_nested_groups_have_their_own_addresses():
    state = ExecutionState()
    addresses = []

    async def inner(n):
        addresses.append(state.address)
        await asyncio.sleep(0.001 * n)
        addresses.append(state.address)
        return n

    async def outer(n):
        async with state.parallel(max_workers=1, name="in") as p:
            for k in range(2):
                p.add(inner(k), name=f"k{k}")
            return sum(result.result for result in await p.gather())

    async with state.parallel(max_workers=1, name="out") as p:
        for n in range(2):
            p.add(outer(n))
        assert [result.result for result in await p.gather()] == [1, 1]
    assert sorted(addresses) == sorted(2 * [f"out/{n}/in/k{k}" for n in range(2) for k in range(2)])
    assert state.address == ""


@on_loop
async def test_s4_34_sequential_code_works_beside_groups():
    state = ExecutionState()
    first = await double(1)
    async with state.parallel() as p:
        p.add(double(first))
        (second,) = await p.gather()
    assert await double(second.result) == 8
