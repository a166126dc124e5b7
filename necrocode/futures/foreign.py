"""Workers of somebody else's making: any concurrent.futures.Executor, used as it is and never shut down from here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

from necrocode import clock
from necrocode.futures.workload import Caught, Place, Work, perform_there


class Foreign:
    """Hands each attempt to the executor. What runs there cannot be ended from here: an attempt whose clock ran out is
    over for its task, but its place stays taken until it returns.

    The clock of an attempt starts with its hand-over, so no more are handed over than the executor can carry
    (`most`, where it says so, as those of the standard library do)."""

    def __init__(self, executor: Executor, *, grace: float = 0.1) -> None:
        self.grace = grace
        most = getattr(executor, "_max_workers", None)
        self.most: int | None = most if isinstance(most, int) and most > 0 else None
        self._executor = executor
        self._tell: Callable[[Work, Caught], None] | None = None

    def serve(self, ended: Callable[[Work, Caught], None]) -> None:
        self._tell = ended

    def start(self, work: Work) -> None:
        call = work.call
        work.worker, work.began = type(self._executor).__name__, clock.monotonic()
        try:
            work.future = self._executor.submit(
                perform_there, call.function, call.args, dict(call.kwargs), call.deadline, call.entry.id
            )
        except RuntimeError as error:  # shut down, or broken
            self._ended(work, Caught(False, error))
            return
        work.future.add_done_callback(lambda future: self._ended(work, _caught(future)))

    def freed(self) -> None:
        """The executor keeps its own count."""

    def stop(self, work: Work) -> Place:
        if not work.close():
            return "ending"
        return "free" if work.future.cancel() else "taken"

    def close(self) -> None:
        """It belongs to somebody else."""

    def owns_this_thread(self) -> bool:
        return False

    def _ended(self, work: Work, caught: Caught) -> None:
        work.ended = clock.monotonic()
        work.close()
        if self._tell:
            self._tell(work, caught)


def _caught(future: Future[Any]) -> Caught:
    if future.cancelled():
        return Caught(False, CancelledError("the executor cancelled it"))
    error = future.exception()
    return Caught(True, future.result()) if error is None else Caught(False, error)
