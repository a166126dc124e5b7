"""A worker pool: retries, priorities, limits that end work, aborting, metrics, and processes instead of threads.

Run it: python examples/worker_pool_example.py
"""

from __future__ import annotations

import threading
import time

from necrocode.concurrency import WorkerPool, WorkerPoolConfig, check_timeout


def square(number: int) -> int:
    """Work that may also go to another process, since it is a function of a module."""
    return number * number


def sleep(seconds: float) -> None:
    """Work that does not listen."""
    time.sleep(seconds)


def results_in_order() -> None:
    """Results come in the order of submission, whatever ends first."""
    with WorkerPool(WorkerPoolConfig(max_workers=4)) as pool:
        for number in range(1, 6):
            pool.submit_task(f"square_{number}", square, (number,))
        print("squares:", [result.result for result in pool.wait_for_all(timeout=60)])


def retries() -> None:
    """A failing attempt is repeated after a growing pause, during which its worker does other things."""
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("the service is down")
        return "answer"

    with WorkerPool(WorkerPoolConfig(max_retries=3, backoff_base_seconds=0.01)) as pool:
        result = pool.get_task_result(pool.submit_task("api_call", flaky))
        print(f"{result.result} after {result.metrics.retries_used} retries")


def priorities_and_abort() -> None:
    """Higher priority starts first; what has not started can be cancelled, and the pool goes on."""
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait()

    order: list[str] = []
    with WorkerPool(WorkerPoolConfig(max_workers=1)) as pool:
        pool.submit_task("hold", hold)
        started.wait()
        for name in ("a", "b", "c"):
            pool.submit_task(name, order.append, (name,))
        print("cancelled:", pool.abort_pending_tasks())
        pool.submit_task("late", order.append, ("late",))
        pool.submit_task("urgent", order.append, ("urgent",), priority=10)
        go.set()
    print("order:", order, "cancelled in all:", pool.get_summary_metrics()["cancelled"])


def limits() -> None:
    """A thread that listens comes back at its limit; a deaf one is given up and its place filled."""

    def listens() -> None:
        while True:
            check_timeout()
            time.sleep(0.005)

    with WorkerPool(WorkerPoolConfig(max_workers=1, max_retries=0, task_timeout_seconds=0.1)) as pool:
        pool.submit_task("listens", listens)
        pool.submit_task("deaf", sleep, (1.0,))
        pool.submit_task("quick", square, (3,))
        for result in pool.wait_for_all():
            print(f"{result.task_name}: {result.metrics.status}, {result.error or result.result}")
        print("given up:", pool.get_summary_metrics()["abandoned"])


def processes() -> None:
    """Processes are killed at their limit, with all they started; they also use all cores."""
    config = WorkerPoolConfig(max_workers=2, max_retries=0, task_timeout_seconds=2.0, executor="process")
    with WorkerPool(config) as pool:
        pool.submit_task("endless", sleep, (300.0,))
        pool.submit_task("square", square, (12,))
        for result in pool.wait_for_all():
            print(f"{result.task_name}: {result.metrics.status}")


if __name__ == "__main__":  # each process worker imports this file
    results_in_order()
    retries()
    priorities_and_abort()
    limits()
    processes()
