"""The asyncio engine: it obeys a schedule, stops what it is told to stop, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading

import pytest
from loops import on_loop, until

from necrocode.aio import Command, CommandFailed, Engine, Threads, is_async, to_the_end
from necrocode.life import Entry
from necrocode.outcome import Status
from necrocode.retry import Policy
from necrocode.schedule import Schedule
from necrocode.task import Task


class Log:
    """Work made of coroutine functions by task id; notes what it is told."""

    def __init__(self, **works):
        self.works, self.began, self.again, self.ends = works, [], [], {}

    def begin(self, task_id, attempt):
        self.began.append((task_id, attempt))
        return asyncio.get_running_loop().create_task(self.works[task_id]())

    def may_retry(self, task_id, error):
        return not isinstance(error, ValueError)

    def retrying(self, task_id, error):
        self.again.append(task_id)

    def behind(self, order):
        self.again.append(order.task_id)

    def ended(self, task_id, status, value, error, reason):
        assert task_id not in self.ends
        self.ends[task_id] = (status, value, type(error).__name__ if error else "", reason)


async def value():
    return 42


async def forever():
    await asyncio.sleep(3600)


def engine(log, *entries, **options):
    return Engine(Schedule(entries, **options), log)


@on_loop
async def test_values_errors_and_dependencies():
    async def bad():
        raise ValueError

    log = Log(a=value, b=bad, c=value, d=value)
    made = engine(log, Entry("c", after=("a",)), Entry("d", after=("b",)), Entry("a"), Entry("b", policy=Policy(3)))
    made.go()
    await until(lambda: made.is_over)
    assert log.ends["a"] == log.ends["c"] == (Status.DONE, 42, "", "")
    assert log.ends["b"][:3] == (Status.FAILED, None, "ValueError") and log.again == []
    assert log.ends["d"][0] is Status.CANCELLED and "comes after b" in log.ends["d"][3]
    assert log.began.index(("a", 1)) < log.began.index(("c", 1))


@on_loop
async def test_an_attempts_clock_cancels_it_and_may_lead_to_another():
    log = Log(a=forever, b=forever)
    made = engine(log, Entry("a", timeout=0.3), Entry("b", timeout=0.3, policy=Policy(1, 0), retry_timeouts=True))
    made.go()
    await until(lambda: made.is_over)
    assert log.ends["a"][0] is log.ends["b"][0] is Status.TIMED_OUT
    assert log.began.count(("a", 1)) == 1 and ("b", 2) in log.began


@on_loop
async def test_tasks_are_added_and_cancelled_while_others_run():
    log = Log(a=forever, b=forever, c=value)
    made = engine(log, limit=1)
    for name in "abc":
        made.add(Entry(name))
    await until(lambda: made.running == ("a",))
    made.cancel("b")
    made.cancel("a", "no longer wanted")
    await until(lambda: made.is_over)
    made.cancel("a")
    assert log.ends["a"] == (Status.CANCELLED, None, "CancelledError", "no longer wanted")
    assert log.ends["b"][0] is Status.CANCELLED and log.ends["c"][0] is Status.DONE
    assert log.began == [("a", 1), ("c", 1)]


@on_loop
async def test_blocked_work_makes_room_for_other_work():
    gate = asyncio.Event()

    order = []

    async def waits():
        made.blocked("a")
        await gate.wait()
        await made.unblocked("a")
        order.append("a")

    async def opens():
        made.admitted("b")
        gate.set()
        await asyncio.sleep(0.02)
        order.append("b")

    log = Log(a=waits, b=opens)
    made = engine(log, *map(Entry, "ab"), limit=1, most_blocked=99)
    made.go()
    await until(lambda: made.is_over)
    assert all(end[0] is Status.DONE for end in log.ends.values())
    assert order == ["b", "a"]  # who comes back waits for a slot too


@on_loop
async def test_close_waits_for_the_end_of_what_it_cancels():
    ended = []

    async def slow_end():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.02)
            ended.append(1)

    log = Log(a=slow_end, b=value)
    made = engine(log, Entry("a"), Entry("b"), limit=1)
    made.go()
    await until(lambda: made.running)
    await made.close("over")
    assert ended == [1] and made.is_over and made.deaf == []
    assert {status for status, *_ in log.ends.values()} == {Status.CANCELLED}


@on_loop
async def test_to_the_end_is_not_cut_short():
    done = []

    async def work():
        await asyncio.sleep(0.02)
        done.append(1)

    async def wait():
        await to_the_end(asyncio.ensure_future(work()), lambda: done.append(0))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [0, 1]


@on_loop
async def test_threads_carry_values_and_errors():
    threads = Threads()

    def bad(error):
        raise error

    assert await threads.call(threading.get_ident) != threading.get_ident()
    assert await threads.call(value) == 42
    for raised, kind in ((OSError("x"), OSError), (StopIteration(1), Exception), (KeyboardInterrupt(), Exception)):
        with pytest.raises(kind):
            await threads.call(lambda raised=raised: bad(raised))
    assert await threads.ended(5) == ()


@on_loop
async def test_a_thread_outlives_its_loops_patience():
    threads, gate = Threads(), threading.Event()
    future = threads.start(gate.wait, "command-deaf")
    future.cancel()
    assert len(await threads.ended(0.02)) == 1
    gate.set()
    assert await threads.ended(5) == ()


@on_loop
async def test_a_command_knows_its_task():
    task = Task("t1", prompt="-rf {task_id}", title="A title")
    output = await Command(["printf", "%s|%s|%s", "{prompt}", "{task_id}", "{title}"], task=task)()
    assert output.stdout == " -rf {task_id}|t1|A title" and output.exit_code == 0 and output.seconds > 0
    assert (await Command(["printf", "%s", "{prompt}"])()).stdout == "{prompt}"
    with pytest.raises(CommandFailed) as caught:
        await Command(["sh", "-c", "exit 5"], task=task)()
    assert (caught.value.exit_code, caught.value.task_id, caught.value.kind) == (5, "t1", "work")


@on_loop
async def test_a_command_is_started_where_there_is_such_a_place(tmp_path):
    with pytest.raises(CommandFailed, match="no such directory"):
        await Command(["true"], cwd=tmp_path / "nowhere")()


def test_what_is_async():
    import functools

    class Callable:
        async def __call__(self): ...

    assert is_async(value) and is_async(functools.partial(value)) and is_async(Callable())
    assert not is_async(lambda: value()) and not is_async(print) and not is_async(functools.partial(print))
