"""S3: the worker pool as its document has it. Each promise is named by its number."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import s3_work

from necrocode.agent_runner import ParallelCoordinator
from necrocode.concurrency import (
    PoolClosed,
    TaskExecutionError,
    TaskMetrics,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    TaskTimeoutError,
    Unfit,
    WorkerPool,
    WorkerPoolConfig,
    check_timeout,
    current,
)
from necrocode.errors import ConfigError
from necrocode.ledger.memory import MemoryLedger


def until(fact, within=20.0):
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.002)


def quick(**settings):
    return WorkerPoolConfig(**{"max_retries": 0, "backoff_base_seconds": 0.01, **settings})


class Gauge:
    """How many are inside at once, and the most there ever were."""

    def __init__(self):
        self.lock, self.now, self.most, self.order = threading.Lock(), 0, 0, []

    def __call__(self, name=None, seconds=0.01):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(name)
        time.sleep(seconds)
        with self.lock:
            self.now -= 1
        return name


@pytest.fixture(autouse=True)
def nothing_is_left():
    """S3-07: no thread and no worker process is left after any of these tests, but what a test says itself."""
    before = set(threading.enumerate())
    yield
    until(lambda: not [it for it in set(threading.enumerate()) - before if it.name.startswith(("pool-", "slot-"))])


class Blocked:
    """Tasks that are held until they are let go."""

    def __init__(self):
        self.started, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, value=None):
        self.started.release()
        assert self.go.wait(30)
        return value

    def wait_started(self, count=1):
        for _ in range(count):
            assert self.started.acquire(timeout=20)


# The document's examples


def test_basic_example(capsys):
    """S3-09, S3-10, S3-19: the first example, nearly verbatim."""
    config = WorkerPoolConfig(
        max_workers=50,
        max_retries=3,
        task_timeout_seconds=180,
        backoff_base_seconds=1.0,
        backoff_max_seconds=60.0,
    )
    with WorkerPool(config) as pool:

        def my_task(x):
            return x * 2

        task_id = pool.submit_task(task_name="double_5", task_fn=my_task, args=(5,))
        result = pool.get_task_result(task_id)
        print(f"Result: {result.result}")
    assert capsys.readouterr().out == "Result: 10\n"
    assert result.success and result.metrics.status == TaskStatus.COMPLETED == "completed"


def test_integration_with_orchestrator(capsys):
    """S3-20, S3-11: 300 questions with 50 workers and a limit of half an hour."""

    def process_micro_question(q_num, preprocessed_doc):
        return f"{preprocessed_doc}:{q_num}"

    def process_all_micro_questions(preprocessed_doc):
        config = WorkerPoolConfig(max_workers=50, max_retries=3)
        with WorkerPool(config) as pool:
            for q_num in range(1, 301):
                pool.submit_task(
                    task_name=f"Q{q_num:03d}", task_fn=process_micro_question, args=(q_num, preprocessed_doc)
                )
            results = pool.wait_for_all(timeout=1800)
            successful = [r for r in results if r.success]
            failed = [r for r in results if not r.success]
            print(f"Success rate: {len(successful) / len(results) * 100:.1f}%")
            assert not failed
            return results

    results = process_all_micro_questions("doc")
    assert [result.result for result in results] == [f"doc:{number}" for number in range(1, 301)]
    assert "Success rate: 100.0%" in capsys.readouterr().out


def test_handling_failures_with_retry():
    """S3-03, S3-15: the flaky task of the document."""
    calls = []

    def call_external_api():
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError("down")
        return "answer"

    config = WorkerPoolConfig(max_workers=10, max_retries=3, backoff_base_seconds=0.02, backoff_max_seconds=30.0)
    with WorkerPool(config) as pool:

        def flaky_task():
            return call_external_api()

        task_id = pool.submit_task("api_call", flaky_task)
        result = pool.get_task_result(task_id)
        if result.success:
            told = f"Success after {result.metrics.retries_used} retries"
        else:
            told = f"Failed after {result.metrics.retries_used} retries: {result.error}"
    assert told == "Success after 2 retries"
    assert len(calls) == 3
    assert calls[1] - calls[0] >= 0.02 and calls[2] - calls[1] >= 0.04


def test_aborting_pending_tasks(capsys):
    """S3-04: the true number is cancelled, they have results and metrics, and the pool goes on."""
    slow_task = Blocked()
    with WorkerPool(WorkerPoolConfig(max_workers=5)) as pool:
        ids = [pool.submit_task(f"task_{i}", slow_task, args=(i,)) for i in range(100)]
        slow_task.wait_started(5)
        cancelled = pool.abort_pending_tasks()
        print(f"Cancelled {cancelled} pending tasks")
        assert cancelled == 95
        assert pool.get_summary_metrics()["cancelled"] == 95, "at once"
        slow_task.go.set()
        results = pool.wait_for_all()
        assert [result.success for result in results] == [True] * 5 + [False] * 95
        last = pool.get_task_result(ids[-1])
        assert last.metrics.status is TaskStatus.CANCELLED and last.metrics.retries_used == 0
        assert isinstance(last.error, TaskExecutionError) and isinstance(last.error.__cause__, CancelledError)
        assert pool.get_task_result(pool.submit_task("after", s3_work.double, (4,))).result == 8
        assert pool.abort_pending_tasks() == 0
    assert "Cancelled 95 pending tasks" in capsys.readouterr().out


def test_getting_metrics(capsys):
    """S3-17: the metrics example."""
    with WorkerPool() as pool:
        for name in ("a", "b"):
            pool.submit_task(name, s3_work.double, (1,))
        results = pool.wait_for_all()
        summary = pool.get_summary_metrics()
        print(f"Completed: {summary['completed']}")
        print(f"Failed: {summary['failed']}")
        print(f"Average time: {summary['avg_execution_time_ms']:.2f}ms")
        print(f"Total retries: {summary['total_retries']}")
        all_metrics = pool.get_metrics()
        for task_id, metrics in all_metrics.items():
            assert metrics.task_id == task_id
            print(f"{metrics.task_name}: {metrics.status} in {metrics.execution_time_ms:.2f}ms")
    out = capsys.readouterr().out
    assert len(results) == 2 and "Completed: 2" in out and "a: completed in " in out


# What the original's own tests assert


def test_defaults():
    """S3-08."""
    config = WorkerPoolConfig()
    assert (config.max_workers, config.task_timeout_seconds, config.max_retries) == (50, 180.0, 3)
    assert (config.backoff_base_seconds, config.backoff_max_seconds, config.enable_instrumentation) == (1.0, 60.0, True)
    assert config.executor == "thread"
    with WorkerPool() as pool:
        assert pool.config == config


def test_status_values():
    assert [str(status) for status in TaskStatus] == [
        "pending", "running", "completed", "failed", "cancelled", "retrying"
    ]  # fmt: skip


def test_fields_as_printed():
    """S3-19."""
    result = TaskResult("id", "name", True)
    assert (result.result, result.error, result.metrics) == (None, None, None)
    metrics = TaskMetrics("id", "name", TaskStatus.PENDING, 1.0)
    assert (metrics.end_time, metrics.execution_time_ms, metrics.retries_used) == (None, 0.0, 0)
    assert (metrics.worker_id, metrics.error_message) == (None, None)


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_end(retries):
    """S3-15, S3-16: attempts are retries + 1 at most, and the original exception is kept."""
    calls = []

    def always():
        calls.append(1)
        raise ValueError("broken")

    with WorkerPool(quick(max_retries=retries)) as pool:
        result = pool.get_task_result(pool.submit_task("X", always))
    assert len(calls) == retries + 1
    assert not result.success and result.result is None
    assert result.metrics.status is TaskStatus.FAILED and result.metrics.retries_used == retries
    assert isinstance(result.error, TaskExecutionError)
    assert str(result.error) == f"Task X failed after {retries} retries: broken"
    assert isinstance(result.error.__cause__, ValueError)
    assert result.metrics.error_message == "ValueError: broken"


def test_delays():
    """S3-03: base * 2**n, capped."""
    policy = WorkerPoolConfig(backoff_base_seconds=0.1, backoff_max_seconds=1.0).policy()
    assert [round(policy.delay(n), 3) for n in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_failure_that_is_not_to_be_retried():
    with WorkerPool(quick(max_retries=3, retry_on=ConnectionError)) as pool:
        result = pool.get_task_result(pool.submit_task("x", s3_work.fail))
    assert result.metrics.retries_used == 0


def test_mixed_results_and_summary():
    """S3-17, S3-21, S3-24: five that work and three that fail, with one retry; every figure agrees."""
    with WorkerPool(quick(max_retries=1, max_workers=3)) as pool:
        for number in range(8):
            function = s3_work.fail if number in (1, 4, 6) else s3_work.double
            pool.submit_task(f"t{number}", function, (number,))
        results = pool.wait_for_all(timeout=60)
        summary = pool.get_summary_metrics()
        metrics = pool.get_metrics()
    assert [r.success for r in results] == [True, False, True, True, False, True, False, True]
    assert summary["total_tasks"] == 8 and summary["completed"] == 5 and summary["failed"] == 3
    assert (summary["cancelled"], summary["running"], summary["pending"], summary["total_retries"]) == (0, 0, 0, 3)
    assert summary["avg_execution_time_ms"] > 0
    assert all(it.execution_time_ms > 0 and it.worker_id and it.end_time for it in metrics.values())


def test_every_submitted_task_is_visible_at_once():
    """S3-17: waiting, running and retrying tasks are counted too, and the counts add up."""
    work = Blocked()
    with WorkerPool(quick(max_workers=1, max_retries=1, backoff_base_seconds=60)) as pool:
        failed = pool.submit_task("f", s3_work.fail)
        until(lambda: pool.get_metrics()[failed].status is TaskStatus.RETRYING)
        pool.submit_task("a", work)
        pool.submit_task("b", work)
        work.wait_started()
        summary = pool.get_summary_metrics()
        assert (summary["total_tasks"], summary["running"], summary["pending"]) == (3, 1, 2)
        assert [it.status for it in pool.get_metrics().values()] == ["retrying", "running", "pending"]
        began = time.monotonic()
        work.go.set()
        assert pool.abort_pending_tasks() in (1, 2)
        pool.wait_for_all(timeout=20)
    assert time.monotonic() - began < 20, "S3-04: the back-off of a minute was cut short"


def test_submissions_from_many_threads():
    """S3-06: fifty submissions from five threads, metrics read meanwhile."""
    with WorkerPool(quick(max_workers=4)) as pool:
        ids: list[str] = []

        def submit():
            for number in range(10):
                ids.append(pool.submit_task("t", s3_work.double, (number,)))
                pool.get_metrics()

        threads = [threading.Thread(target=submit) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = pool.wait_for_all(timeout=60)
    assert len(set(ids)) == 50 and all(uuid.UUID(it).version == 4 and str(uuid.UUID(it)) == it for it in ids)
    assert sum(result.success for result in results) == 50


def test_same_submissions_same_results():
    """S3-01: in the order of submission, whatever ends first."""
    first = threading.Event()

    def wait_for_the_others(number):
        if number == 0:
            assert first.wait(20)
        elif number == 9:
            first.set()
        return number

    for _ in range(2):
        first.clear()
        with WorkerPool(quick(max_workers=10)) as pool:
            for number in range(10):
                pool.submit_task("t", wait_for_the_others, (number,))
            assert [result.result for result in pool.wait_for_all(timeout=60)] == list(range(10))


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_never_more_than_max_workers_and_that_many(executor, caplog):
    """S3-02: measured by the tasks themselves."""
    if executor == "thread":
        caplog.set_level(logging.DEBUG, "necrocode.concurrency")
        gauge = Gauge()
        with WorkerPool(quick(max_workers=3)) as pool:
            for number in range(20):
                pool.submit_task(str(number), gauge)
        assert gauge.most == 3
        # Which of three threads reaches its task's first line first is the system's choice.
        started = [line.args[0] for line in caplog.records if line.args[1] == "attempt.started"]
        assert started == [str(number) for number in range(20)], "S3-22: equal priority is first come, first served"
        return
    with WorkerPool(quick(max_workers=2, executor="process")) as pool:
        for _ in range(6):
            pool.submit_task("t", s3_work.pid)
        results = pool.wait_for_all(timeout=90)
    pids = {result.result for result in results}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids


def test_priority_groups():
    """S3-22: higher priority first, within one priority in order of submission."""
    gauge, gate = Gauge(), Blocked()
    with WorkerPool(quick(max_workers=1)) as pool:
        pool.submit_task("gate", gate)
        gate.wait_started()
        for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
            pool.submit_task(name, gauge, (name, 0), priority=priority)
        gate.go.set()
    assert gauge.order == ["b", "d", "a", "c", "e"]


# Waiting


def test_the_callers_patience_is_no_limit():
    """S3-10: TimeoutError, and the task goes on; None waits for ever."""
    work = Blocked()
    with WorkerPool(quick()) as pool:
        task_id = pool.submit_task("t", work, ("value",))
        for patience in (0, 0.05):
            with pytest.raises(TimeoutError):
                pool.get_task_result(task_id, timeout=patience)
        work.go.set()
        assert pool.get_task_result(task_id, timeout=None).result == "value"
        with pytest.raises(KeyError):
            pool.get_task_result("unknown")


def test_wait_for_all_gives_what_is_there():
    """S3-11."""
    work = Blocked()
    with WorkerPool(quick(max_workers=2)) as pool:
        pool.submit_task("held", work)
        done = pool.submit_task("done", s3_work.double, (2,))
        pool.get_task_result(done)
        with pytest.raises(TimeoutError) as caught:
            pool.wait_for_all(timeout=0.05)
        assert [result.result for result in caught.value.results] == [4]
        work.go.set()
        assert len(pool.wait_for_all()) == 2
        assert [it.task_id for it in pool.wait_for_all(task_ids=[done])] == [done]
        with pytest.raises(ConfigError):
            pool.wait_for_all(return_when="SOMETIMES")


def test_first_exception():
    """S3-12: back at the first failure; the others can be aborted, or go on."""
    work = Blocked()
    with WorkerPool(quick(max_workers=2)) as pool:
        pool.submit_task("held", work)
        pool.submit_task("fails", s3_work.fail)
        for _ in range(5):
            pool.submit_task("held", work)
        results = pool.wait_for_all(timeout=60, return_when="FIRST_EXCEPTION")
        assert [result.success for result in results] == [False]
        pool.abort_pending_tasks()
        work.go.set()


def test_as_they_come():
    with WorkerPool(quick(max_workers=4)) as pool:
        ids = {pool.submit_task("t", s3_work.double, (number,)) for number in range(20)}
        assert {result.task_id for result in pool.as_completed(timeout=60)} == ids


def test_four_phases_on_one_pool():
    """S3-25: one pool for phases that build on each other."""
    with WorkerPool(quick(max_workers=8)) as pool:
        values = list(range(300))
        for size in (300, 60, 10):
            ids = [pool.submit_task("t", s3_work.double, (value,)) for value in values[:size]]
            values = [result.result for result in pool.wait_for_all(timeout=60, task_ids=ids)]
        assert len(values) == 10 and len(pool.wait_for_all()) == 370


# Limits


def test_a_listening_thread_ends_in_time():
    """S3-13: it asks, learns that its time is over, and its worker is used again."""
    with WorkerPool(quick(max_workers=1, task_timeout_seconds=0.5)) as pool:
        slow = pool.submit_task("slow", s3_work.checks)
        result = pool.get_task_result(slow)
        after = pool.get_task_result(pool.submit_task("next", threading.get_ident))
        assert pool.abandoned_tasks() == []
    assert not result.success and result.metrics.status is TaskStatus.FAILED
    assert isinstance(result.error, TaskTimedOutError) and isinstance(result.error, TimeoutError)
    assert isinstance(result.error, TaskTimeoutError) and isinstance(result.error, TaskExecutionError)
    assert result.error.timeout == 0.5 and result.error.elapsed >= 0.5
    assert result.metrics.worker_id == after.metrics.worker_id


@pytest.mark.parametrize("collect", ["one", "all", "stream"])
def test_a_deaf_thread_is_given_up(collect):
    """S3-13, S3-07, S3-24: its place is free, its status final, its late answer ignored; nobody waits for it."""
    go, returned = threading.Event(), threading.Event()

    def deaf():
        go.wait(30)
        returned.set()
        return "too late"

    with WorkerPool(quick(max_workers=1, task_timeout_seconds=0.5)) as pool:
        slow = pool.submit_task("deaf", deaf)
        other = pool.submit_task("other", s3_work.double, (1,))
        if collect == "one":
            results = [pool.get_task_result(slow), pool.get_task_result(other)]
        elif collect == "all":
            results = pool.wait_for_all()
        else:
            results = sorted(pool.as_completed(), key=lambda result: result.success)
        assert [result.success for result in results] == [False, True]
        assert pool.abandoned_tasks() == [slow] and pool.get_summary_metrics()["abandoned"] == 1
        if collect == "all":
            go.set()
            assert returned.wait(20)
            until(lambda: pool.abandoned_tasks() == [])
    assert pool.get_metrics()[slow].status is TaskStatus.FAILED, "S3-23: no flip"
    assert isinstance(results[0].error, TimeoutError)
    go.set()


def test_time_in_the_queue_is_not_execution_time():
    """S3-14: the third of three tasks on one worker waits longer than its limit, and is not ended."""
    with WorkerPool(quick(max_workers=1, task_timeout_seconds=1.5)) as pool:
        for _ in range(3):
            pool.submit_task("t", time.sleep, (0.6,))
        results = pool.wait_for_all(timeout=60)
    assert all(result.success for result in results)
    assert all(590 < result.metrics.execution_time_ms < 5000 for result in results)


def test_timeouts_are_retried_when_asked_for():
    seen = []

    def slow_first():
        seen.append(1)
        while len(seen) == 1:
            check_timeout()
            time.sleep(0.002)
        return "second"

    with WorkerPool(quick(max_retries=1, task_timeout_seconds=0.5, retry_timeouts=True)) as pool:
        result = pool.get_task_result(pool.submit_task("t", slow_first))
    assert result.result == "second" and result.metrics.retries_used == 1


def test_work_can_see_its_clock():
    def look():
        context = current()
        return context.deadline, context.remaining, context.task_id

    with WorkerPool(quick(task_timeout_seconds=30)) as pool:
        task_id = pool.submit_task("t", look)
        deadline, remaining, seen = pool.get_task_result(task_id).result
    assert deadline == 30 and 0 < remaining <= 30 and seen == task_id
    assert current() is None


def test_a_back_off_holds_no_worker():
    with WorkerPool(quick(max_workers=1, max_retries=1, backoff_base_seconds=60)) as pool:
        failing = pool.submit_task("t", s3_work.fail)
        until(lambda: pool.get_metrics()[failing].status is TaskStatus.RETRYING)
        assert pool.get_task_result(pool.submit_task("u", s3_work.double, (1,)), timeout=20).result == 2
        pool.abort_pending_tasks()


# The end


def test_shutdown():
    """S3-18: waits, twice does no harm, nothing is taken afterwards."""
    work = Blocked()
    pool = WorkerPool(quick(max_workers=1))
    running, waiting = pool.submit_task("a", work), pool.submit_task("b", work)
    work.wait_started()
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError) as caught:
        pool.submit_task("late", s3_work.double, (1,))
    assert isinstance(caught.value, PoolClosed)
    assert pool.get_task_result(waiting).metrics.status is TaskStatus.CANCELLED
    assert len(pool.get_metrics()) == 2
    work.go.set()
    pool.shutdown()
    pool.shutdown(cancel_futures=True)
    assert pool.get_task_result(running).success
    assert pool.abort_pending_tasks() == 0 and pool.get_summary_metrics()["completed"] == 1


def test_a_pool_that_was_never_used():
    pool = WorkerPool()
    pool.shutdown()
    assert pool.wait_for_all() == [] and pool.get_metrics() == {} and pool.get_summary_metrics()["total_tasks"] == 0
    with pytest.raises(PoolClosed):
        pool.submit_task("t", s3_work.double, (1,))


def test_leaving_waits_for_all():
    with WorkerPool(quick(max_workers=2)) as pool:
        ids = [pool.submit_task("t", s3_work.double, (number,)) for number in range(50)]
    assert all(pool.get_task_result(task_id, timeout=0).success for task_id in ids)


def test_leaving_by_an_exception_cancels_what_waits():
    work = Blocked()
    with pytest.raises(ZeroDivisionError), WorkerPool(quick(max_workers=1)) as pool:
        ids = [pool.submit_task("t", work) for _ in range(5)]
        work.wait_started()
        # The first one ends when the last one has been cancelled, so that none of them can have its turn before.
        threading.Thread(target=lambda: (pool.get_task_result(ids[-1]), work.go.set())).start()
        raise ZeroDivisionError
    statuses = [pool.get_task_result(task_id).metrics.status for task_id in ids]
    assert statuses == [TaskStatus.COMPLETED, *[TaskStatus.CANCELLED] * 4]


def test_a_task_may_shut_its_own_pool_down():
    pool = WorkerPool(quick())
    task_id = pool.submit_task("t", pool.shutdown)
    assert pool.get_task_result(task_id, timeout=20).success
    pool.shutdown()


@pytest.mark.parametrize("deaf", ["", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"], ids=["", "unheard"])
@pytest.mark.parametrize("wait", ["pool.wait_for_all()", "pass"], ids=["in the block", "at its end"])
def test_interrupted_while_waiting(wait, deaf, tmp_path):
    """Ctrl-C in the with block, or while leaving it: running work is told to stop, deaf work is given up, the program
    ends; also when the signal came to another thread, and nobody woke the one that waits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, threading, time\n"
        "from necrocode.concurrency import WorkerPool, WorkerPoolConfig\n"
        "started = threading.Event()\n"
        "def deaf():\n"
        "    started.set()\n"
        "    time.sleep(300)\n"
        "def interrupt():\n"
        "    started.wait()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "pool = WorkerPool(WorkerPoolConfig(max_workers=1))\n"
        "try:\n"
        "    with pool:\n"
        "        ids = [pool.submit_task('t', deaf) for _ in range(3)]\n"
        f"        {deaf}\n"
        f"        {wait}\n"
        "except KeyboardInterrupt:\n"
        "    print(sorted({str(m.status) for m in pool.get_metrics().values()}))\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "['cancelled']", "")


def test_forgetting():
    """What has ended can be dropped; what has not stays."""
    work = Blocked()
    with WorkerPool(quick()) as pool:
        done = pool.submit_task("done", s3_work.double, (1,))
        pool.get_task_result(done)
        held = pool.submit_task("held", work)
        assert pool.forget() == 1 and list(pool.get_metrics()) == [held]
        with pytest.raises(KeyError):
            pool.get_task_result(done)
        work.go.set()
        assert pool.get_task_result(held).success
        assert pool.forget([held, "unknown"]) == 1 and pool.get_metrics() == {}


# Bad input


@pytest.mark.parametrize("count", [0, -1, True, "5", 2.0, None])
def test_impossible_numbers_of_workers(count):
    with pytest.raises(ConfigError, match="max_workers"):
        WorkerPoolConfig(max_workers=count)
    config = WorkerPoolConfig()
    config.max_workers = count
    with pytest.raises(ConfigError, match="max_workers"):
        WorkerPool(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"task_timeout_seconds": 0}, {"task_timeout_seconds": float("nan")}, {"max_retries": -1}, {"max_retries": True},
        {"backoff_base_seconds": -1}, {"backoff_max_seconds": "1"}, {"jitter": 2.0}, {"executor": "carrier pigeon"},
        {"coordinator": object()}, {"retry_on": 3}, {"retry_on": ("ValueError",)}, {"retry_on": ValueError("one")},
        {"enable_instrumentation": "no"}, {"retry_timeouts": 1},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        WorkerPoolConfig(**settings)


class AsyncCallable:
    async def __call__(self):
        return 1


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (5, (), None), ("double", (), None), (s3_work.double(1), (), None), (s3_work.coroutine, (), None),
        (AsyncCallable(), (), None), (s3_work.double, 5, None), (s3_work.double, "5", None), (s3_work.double, (), 5),
        (s3_work.double, (), {1: 2}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_called(function, args, kwargs):
    with WorkerPool(quick()) as pool:
        with pytest.raises(Unfit) as caught:
            pool.submit_task("t", function, args, kwargs)
        assert isinstance(caught.value, TypeError) and pool.get_metrics() == {}


@pytest.mark.parametrize("config", [3, {"max_workers": 3}, WorkerPoolConfig], ids=lambda value: type(value).__name__)
def test_what_is_no_configuration(config):
    with pytest.raises(ConfigError, match="is no configuration"):
        WorkerPool(config)


def test_impossible_arguments():
    """Each is refused by the call that has it; the pool goes on."""
    with WorkerPool(quick()) as pool:
        with pytest.raises(Unfit, match="name"):
            pool.submit_task(s3_work.double, (1,))
        task_id = pool.submit_task("t", s3_work.double, (1,))
        with pytest.raises(ConfigError, match="one text"):
            pool.wait_for_all(task_ids=task_id)
        for patience in ("1", float("nan")):
            with pytest.raises(ConfigError, match="timeout"):
                pool.wait_for_all(timeout=patience)
        assert pool.get_task_result(task_id, timeout=20).result == 2


def test_those_who_ask_again_and_again_leave_nothing():
    """Whoever's patience ended is not remembered."""
    go = threading.Event()
    with WorkerPool(quick()) as pool:
        task_id = pool.submit_task("t", go.wait, (60,))
        for _ in range(20):
            with pytest.raises(TimeoutError):
                pool.get_task_result(task_id, timeout=0)
        assert not any(pool._waits.values())
        go.set()
        assert pool.get_task_result(task_id).success


def test_work_that_returns_a_coroutine():
    with WorkerPool(quick(max_retries=3)) as pool:
        result = pool.get_task_result(pool.submit_task("t", lambda: s3_work.coroutine()))
    assert isinstance(result.error.__cause__, Unfit) and result.metrics.retries_used == 0


def test_work_that_leaves_python():
    """S3-21: SystemExit in a task is its failure, not the worker's end."""
    with WorkerPool(quick(max_workers=1, max_retries=1)) as pool:
        result = pool.get_task_result(pool.submit_task("t", s3_work.exit_python))
        assert pool.get_task_result(pool.submit_task("u", s3_work.double, (1,))).result == 2
    assert isinstance(result.error.__cause__, SystemExit) and result.metrics.retries_used == 0


# Instrumentation


@pytest.mark.parametrize("enabled", [True, False])
def test_log_lines(enabled, caplog):
    """S3-05: the switch turns the log lines; the metrics are always there."""
    caplog.set_level(logging.DEBUG, "necrocode.concurrency")
    with WorkerPool(quick(max_retries=1, enable_instrumentation=enabled)) as pool:
        pool.submit_task("fine", s3_work.double, (1,))
        pool.submit_task("broken", s3_work.fail)
        results = pool.wait_for_all()
    assert all(result.metrics.worker_id for result in results)
    text = caplog.text
    for line in ("fine completed in", "broken attempt.retried", "broken failed in"):
        assert (line in text) is enabled


# Executors of others


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor(kind):
    """S3-25: an executor that is handed in carries the work, and stays its owner's."""
    with kind(max_workers=2) as executor:
        with WorkerPool(quick(max_workers=8, max_retries=1, executor=executor)) as pool:
            for number in range(6):
                pool.submit_task("t", s3_work.double, (number,))
            pool.submit_task("bad", s3_work.fail)
            results = pool.wait_for_all(timeout=90)
        assert [result.result for result in results] == [0, 2, 4, 6, 8, 10, None]
        assert isinstance(results[-1].error.__cause__, ValueError) and results[-1].metrics.retries_used == 1
        assert executor.submit(s3_work.double, 4).result() == 8


def test_an_executor_that_was_shut_down():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with WorkerPool(quick(executor=executor)) as pool:
        result = pool.get_task_result(pool.submit_task("t", s3_work.double, (1,)))
    assert isinstance(result.error.__cause__, RuntimeError)


def test_a_deaf_call_of_a_foreign_executor_keeps_its_place():
    """The task is over in time; the place is not used twice, so nobody else's time is counted in a queue."""
    go = threading.Event()
    with (
        ThreadPoolExecutor(1) as executor,
        WorkerPool(quick(max_workers=4, executor=executor, task_timeout_seconds=0.5)) as pool,
    ):
        result = pool.get_task_result(pool.submit_task("deaf", go.wait, (30,)))
        assert isinstance(result.error, TimeoutError)
        other = pool.submit_task("other", s3_work.double, (1,))
        with pytest.raises(TimeoutError):
            pool.get_task_result(other, timeout=0.3)
        go.set()
        assert pool.get_task_result(other, timeout=20).result == 2


def test_dask():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client,
        WorkerPool(quick(max_workers=2, executor=client.get_executor())) as pool,
    ):
        ids = [pool.submit_task("t", s3_work.double, (number,)) for number in range(5)]
        assert [pool.get_task_result(it, timeout=60).result for it in ids] == [0, 2, 4, 6, 8]


def test_parsl(tmp_path):
    parsl = pytest.importorskip("parsl")
    from parsl.concurrent import ParslPoolExecutor

    config = parsl.Config(executors=[parsl.ThreadPoolExecutor(max_threads=2)], run_dir=str(tmp_path))
    with ParslPoolExecutor(config) as executor, WorkerPool(quick(max_workers=2, executor=executor)) as pool:
        ids = [pool.submit_task("t", s3_work.double, (number,)) for number in range(5)]
        assert [pool.get_task_result(it, timeout=60).result for it in ids] == [0, 2, 4, 6, 8]


# The machine's slots


@pytest.mark.parametrize("kind", ["memory", "coordinator"])
def test_the_limit_of_the_whole_machine(kind, tmp_path):
    """Two pools, one coordinator: together never more than its limit."""
    if kind == "memory":
        coordinator = ledger = MemoryLedger(limit=2)
    else:
        coordinator = ParallelCoordinator(tmp_path / "state", max_parallel_runners=2)
        ledger = coordinator.ledger
    gauge = Gauge()
    with (
        WorkerPool(quick(max_workers=3, coordinator=coordinator)) as one,
        WorkerPool(quick(max_workers=3, coordinator=coordinator)) as two,
    ):
        for number in range(6):
            one.submit_task("t", gauge, (number,))
            two.submit_task("t", gauge, (number,))
        assert all(result.success for pool in (one, two) for result in pool.wait_for_all(timeout=60))
    assert gauge.most <= 2
    until(lambda: not ledger.view.standing)


def test_waiting_for_a_slot_is_not_execution_time(tmp_path):
    """S3-14 on the whole machine; and what waits for a slot can be ended."""
    ledger = MemoryLedger(limit=1)
    from necrocode.lease import Request

    stranger = ledger.register(Request("stranger"))
    with WorkerPool(quick(coordinator=ledger, task_timeout_seconds=0.6)) as pool:
        task_id = pool.submit_task("t", s3_work.double, (1,))
        with pytest.raises(TimeoutError):
            pool.get_task_result(task_id, timeout=1.0)
        ledger.release(stranger)
        assert pool.get_task_result(task_id, timeout=20).result == 2


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_what_waits_for_the_machines_slot_is_cancelled_at_once(kind, tmp_path):
    """S3-04: it has not started; the count is true, the queue is left, and the pool goes on."""
    from necrocode.lease import Request

    ledger = MemoryLedger(limit=1) if kind == "memory" else ParallelCoordinator(tmp_path / "s", 1).ledger
    stranger = ledger.register(Request("stranger", limit=1))
    coordinator = ledger if kind == "memory" else ParallelCoordinator(tmp_path / "s", 1)

    def waiting():
        return list(ledger.view.waiting if kind == "memory" else ledger.snapshot().waiting)

    with WorkerPool(quick(max_workers=2, coordinator=coordinator)) as pool:
        ids = [pool.submit_task("t", s3_work.double, (number,)) for number in range(3)]
        until(lambda: len(waiting()) == 2)
        began = time.monotonic()
        assert pool.abort_pending_tasks() == 3
        assert time.monotonic() - began < 8
        results = pool.wait_for_all(timeout=20)
        assert [result.metrics.status for result in results] == [TaskStatus.CANCELLED] * 3
        assert all("was cancelled: aborted" in str(result.error) for result in results)
        assert all(result.metrics.start_time == 0.0 for result in results)
        until(lambda: not waiting())
        last = pool.submit_task("t", s3_work.double, (4,))
        until(waiting)
        ledger.release(stranger)
        assert pool.get_task_result(last, timeout=20).result == 8
    assert len(ids) == 3 and pool.get_summary_metrics()["cancelled"] == 3


def test_leaving_by_an_exception_waits_for_no_slot():
    """S3-07: the stranger keeps the machine's only slot for ever."""
    from necrocode.lease import Request

    ledger = MemoryLedger(limit=1)
    stranger = ledger.register(Request("stranger"))
    with pytest.raises(KeyError), WorkerPool(quick(coordinator=ledger)) as pool:
        task_id = pool.submit_task("t", s3_work.double, (1,))
        until(lambda: ledger.view.waiting)
        raise KeyError
    assert pool.get_task_result(task_id).metrics.status is TaskStatus.CANCELLED
    until(lambda: not ledger.view.waiting)
    ledger.release(stranger)


class Dawdling(MemoryLedger):
    """Grants at once, and tells of it when it may."""

    def __init__(self) -> None:
        super().__init__(limit=1)
        self.may_tell = threading.Event()

    def register(self, *args, **more):
        lease = super().register(*args, **more)
        assert self.may_tell.wait(60)
        return lease


def test_a_slot_that_comes_when_the_pool_is_gone_is_given_back():
    """S3-07: neither the lease nor its heartbeat outlives the pool."""
    ledger = Dawdling()
    pool = WorkerPool(quick(coordinator=ledger))
    pool.submit_task("t", s3_work.double, (1,))
    until(lambda: ledger.view.standing)
    assert pool.abort_pending_tasks() == 1
    pool.shutdown()
    ledger.may_tell.set()
    until(lambda: not ledger.view.standing)
    until(lambda: not [one.name for one in threading.enumerate() if one.name.startswith(("slot-", "heartbeat-"))])


def test_a_lost_lease_stops_the_work():
    """An attempt whose slot was taken away is told to stop."""
    ledger = MemoryLedger(limit=1)
    pool = WorkerPool(quick(coordinator=ledger))
    config = pool.config
    assert config.coordinator is ledger
    with pool:
        task_id = pool.submit_task("t", s3_work.checks)
        until(lambda: ledger.view.standing and pool.get_metrics()[task_id].status is TaskStatus.RUNNING)
        (runner,) = ledger.view.standing
        ledger.fence(runner)
        assert not pool.get_task_result(task_id, timeout=60).success


def test_signal_module_is_untouched():
    """S3-07: a pool changes nothing about signals."""
    before = signal.getsignal(signal.SIGINT)
    with WorkerPool() as pool:
        pool.submit_task("t", s3_work.double, (1,))
    assert signal.getsignal(signal.SIGINT) is before
