"""The engine by itself: facts and orders over threads, and what must not go wrong between them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from stalls import longer

from necrocode.context import TaskContext, current
from necrocode.errors import TaskTimeoutError
from necrocode.futures import Call, Caught, Engine, Foreign, PoolClosed, Threads, Unfit, Work, attempt, perform
from necrocode.outcome import Status
from necrocode.retry import Policy
from necrocode.schedule import Entry


def until(fact, within=20.0):
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


class Ends:
    """How each task ended, told exactly once."""

    def __init__(self):
        self.ends, self.change = {}, threading.Condition()

    def __call__(self, call, status, caught):
        with self.change:
            assert call.entry.id not in self.ends, "told twice"
            self.ends[call.entry.id] = status, caught
            self.change.notify_all()

    def wait(self, count, within=30.0):
        with self.change:
            assert self.change.wait_for(lambda: len(self.ends) >= count, within), self.ends
        return self.ends


@pytest.fixture
def ends():
    return Ends()


@pytest.fixture
def engine():
    made = []

    def make(limit=2, workers=None, **settings):
        made.append(Engine(workers or Threads("engine-test", grace=0.0), limit, **settings))
        return made[-1]

    yield make
    for it in made:
        it.stop_all("the test is over")
        it.close()


def call(name, function, ends, *args, **entry):
    policy = Policy(entry.pop("retries", 0), base=entry.pop("base", 0.0))
    deadline = entry.get("timeout")
    return Call(Entry(name, policy=policy, **entry), function, args, {}, ends, deadline, name=name)


def test_values_and_exceptions(engine, ends):
    it = engine()
    it.submit(call("good", int, ends, "5"))
    it.submit(call("bad", int, ends, "x"))
    told = ends.wait(2)
    assert told["good"] == (Status.DONE, Caught(True, 5))
    assert told["bad"][0] is Status.FAILED and isinstance(told["bad"][1].value, ValueError)


def test_events_in_order(engine, ends):
    events = []
    it = engine(tell=events.append)

    def fail_once(seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 1:
            raise OSError("once")

    it.submit(call("t", fail_once, ends, retries=1))
    ends.wait(1)
    assert [(event.kind, event.facts.get("attempt")) for event in events] == [
        ("attempt.started", 1), ("attempt.finished", 1), ("attempt.retried", 1), ("attempt.started", 2),
        ("attempt.finished", 2),
    ]  # fmt: skip
    assert [event.facts["status"] for event in events if event.kind == "attempt.finished"] == ["waiting", "done"]
    assert events[1].facts["error"] == "OSError: once" and events[1].facts["worker"].startswith("engine-test")


def test_dependencies_are_the_schedules(engine, ends):
    order, gate = [], threading.Event()
    it = engine(limit=4)
    it.submit(call("first", gate.wait, ends, 30))
    it.submit(call("second", order.append, ends, "second", after=("first",)))
    gate.set()
    assert ends.wait(2)["second"][0] is Status.DONE


def test_cancelled_while_waiting(engine, ends):
    gate = threading.Event()
    it = engine(limit=1)
    it.submit(call("held", gate.wait, ends, 30))
    for number in range(5):
        it.submit(call(f"t{number}", int, ends))
    until(lambda: it.ask(lambda: bool(it._works)))
    assert it.cancel_waiting("enough") == 5 and it.cancel_waiting("again") == 0
    gate.set()
    told = ends.wait(6)
    assert all(told[f"t{number}"][0] is Status.CANCELLED for number in range(5))
    assert isinstance(told["t0"][1].value, CancelledError)
    assert told["held"] == (Status.DONE, Caught(True, True))


def test_nothing_is_taken_after_the_end(engine, ends):
    it = engine()
    it.submit(call("t", int, ends))
    it.close()
    it.close()
    with pytest.raises(PoolClosed):
        it.submit(call("late", int, ends))
    assert ends.ends["t"][0] is Status.DONE
    assert it.ask(lambda: "still answers") == "still answers" and it.cancel_waiting("x") == 0


def test_a_question_that_fails(engine, ends):
    it = engine()
    it.submit(call("t", int, ends))
    with pytest.raises(ZeroDivisionError):
        it.ask(lambda: 1 // 0)
    it.submit(call("u", int, ends))
    assert len(ends.wait(2)) == 2, "the engine lives"


def test_deaf_workers_are_replaced_again_and_again(engine, ends):
    """Each deadline frees the place, however many threads do not come back; each leaves when it does."""
    gate = threading.Event()
    workers = Threads("deaf-test", grace=0.0)
    it = engine(limit=1, workers=workers)
    for number in range(5):
        it.submit(call(f"deaf{number}", gate.wait, ends, 30, timeout=0.02))
    it.submit(call("fine", int, ends))
    told = ends.wait(6)
    assert [told[f"deaf{number}"][0] for number in range(5)] == [Status.TIMED_OUT] * 5
    assert isinstance(told["deaf0"][1].value, TaskTimeoutError) and told["fine"][0] is Status.DONE
    assert len(it.deaf()) == 5
    gate.set()
    until(lambda: not it.deaf())
    it.close()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("deaf-test")])


def test_ends_and_deadlines_at_the_same_moment(engine, ends):
    """Attempts that end just when their time is over: each is told once, no place is lost or used twice."""
    lock, inside, most, chance = threading.Lock(), [0], [0], random.Random(7)

    def work(seconds):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(seconds)
        with lock:
            inside[0] -= 1

    it = engine(limit=3)
    for number in range(150):
        it.submit(call(f"t{number}", work, ends, 0.005 + chance.uniform(-0.002, 0.002), timeout=0.005))
    counts = Counter(str(status) for status, _ in ends.wait(150, within=60).values())
    assert set(counts) <= {"done", "timed_out"} and sum(counts.values()) == 150
    it.submit(call("last", int, ends))
    assert ends.wait(151)["last"][0] is Status.DONE
    assert it.ask(lambda: it._schedule.limit) == 3
    until(lambda: not it.deaf())


def test_deadlines_hold_whoever_drives(engine, ends):
    """A deadline set by a turn that a worker drove wakes the engine's own thread all the same."""
    gate = threading.Event()
    it = engine(limit=2)
    for number in range(50):
        it.submit(call(f"quick{number}", int, ends))
        it.submit(call(f"slow{number}", gate.wait, ends, 30, timeout=0.01))
        ends.wait(2 * (number + 1), within=20)
    gate.set()


def test_the_clock_starts_with_the_work(engine, ends):
    """However long a worker takes to begin, its attempt has all of its time; then it is ended."""

    class Sleepy(Threads):
        def _carry(self, work):
            work.began = 0.0
            time.sleep(2 * work.call.deadline)
            work.began = time.monotonic()
            return super()._carry(work)

    it = engine(workers=Sleepy("sleepy-test", grace=0.0))
    for turn, clock in enumerate(longer(0.1)):
        gate = threading.Event()
        it.submit(call(f"quick{turn}", int, ends, timeout=clock))
        it.submit(call(f"slow{turn}", gate.wait, ends, 30, timeout=clock))
        told = ends.wait(2 * (turn + 1))
        gate.set()
        assert told[f"slow{turn}"][0] is Status.TIMED_OUT
        assert clock <= told[f"slow{turn}"][1].value.elapsed < 5 + clock
        if told[f"quick{turn}"][0] is Status.DONE:
            return
    pytest.fail("it never had all of its time")


def test_submitted_and_ended_from_many_threads(engine, ends):
    it = engine(limit=4)

    def submit(worker):
        for number in range(200):
            it.submit(call(f"{worker}-{number}", int, ends))

    with ThreadPoolExecutor(5) as executor:
        list(executor.map(submit, range(5)))
    assert Counter(status for status, _ in ends.wait(1000, within=60).values()) == {Status.DONE: 1000}
    assert it.ask(lambda: (len(it._calls), len(it._works), len(it._schedule._lives))) == (0, 0, 0), "all is forgotten"


def test_work_given_up_before_anybody_began_it():
    """The thread that finds it later does not run it, and is not lost."""
    told, gate = [], threading.Event()
    workers = Threads("begin-test", grace=0.0)
    workers.serve(lambda work, caught: told.append(work))

    def work(name, function):
        return Work(Call(Entry(name), function, (), {}, print), 1)

    first, second = work("held", lambda: gate.wait(20)), work("never", lambda: told.append("ran"))
    workers.start(first)
    until(lambda: first.worker)
    workers._todo.put(second)  # in the line of a thread that is busy
    workers._busy += 1
    assert workers.stop(second) == "free" and not second.take("x") and not second.close()
    gate.set()
    until(lambda: told == [first, second])
    workers.close()


def test_a_foreign_executor_that_does_not_say_its_size(engine, ends):
    class Plain:
        def __init__(self, inner):
            self.inner = inner

        def submit(self, *args):
            return self.inner.submit(*args)

    with ThreadPoolExecutor(2) as inner:
        workers = Foreign(Plain(inner))
        assert workers.most is None
        it = engine(workers=workers)
        it.submit(call("t", int, ends, "3"))
        assert ends.wait(1)["t"] == (Status.DONE, Caught(True, 3))


def test_attempt_catches_everything_and_awaits_nothing():
    assert attempt(int, ("3",), {"base": 8}) == Caught(True, 3)
    assert isinstance(attempt(exec, ("raise SystemExit(3)",), {}).value, SystemExit)

    async def later():
        return 1

    assert isinstance(attempt(later, (), {}).value, Unfit)


def test_each_attempt_has_a_context_of_its_own():
    context = TaskContext(5.0, task_id="x")
    assert perform(current, (), {}, context).value is context
    assert current() is None
    with context.active():
        assert current() is context
    assert current() is None


@pytest.mark.slow
def test_the_cost_of_a_task_does_not_grow(ends):
    """S3-27: eight times as many tasks at once cost about eight times as much, not sixty-four times."""

    def cost(count):
        told, began = Ends(), time.process_time()
        it = Engine(Threads("cost-test"), 8)
        for number in range(count):
            it.submit(call(str(number), int, told))
        it.close()
        assert len(told.ends) == count
        return (time.process_time() - began) / count

    few, many = min(cost(1000) for _ in range(3)), min(cost(8000) for _ in range(2))
    assert many < 4 * few
