"""Obey a schedule with threads, with processes, or with anybody's concurrent.futures.Executor.

`Engine` owns one Schedule and one thread that drives it: facts come in through a queue, orders go out to the
workers. Nobody else touches the schedule, so an interrupt in the caller's thread finds nothing half done.
"""

from __future__ import annotations

from necrocode.futures.engine import Engine
from necrocode.futures.foreign import Foreign
from necrocode.futures.processes import Processes
from necrocode.futures.threads import Threads
from necrocode.futures.workload import Call, Caught, PoolClosed, Unfit, Work, Workers, attempt, checked_work, perform

__all__ = [
    "Call", "Caught", "Engine", "Foreign", "PoolClosed", "Processes", "Threads", "Unfit", "Work", "Workers",
    "attempt", "checked_work", "perform",
]  # fmt: skip
