"""Workers that are threads of this process: cooperative, and given up when they do not listen.

The threads of the standard library's pool are joined at exit, so one deaf call keeps the program from ending. These
are daemons: a worker that does not come back in time is replaced, never waited for, and goes when it returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from necrocode import clock
from necrocode.futures.workload import Caught, Place, Work, perform


class Threads:
    """As many daemon threads as there are attempts at once; idle ones are used again."""

    def __init__(self, name: str = "worker", *, grace: float = 0.1) -> None:
        self.grace = grace
        self.most: int | None = None
        self._name = name
        self._todo: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._started = self._busy = 0
        self._tell: Callable[[Work, Caught], None] = _nobody

    def serve(self, ended: Callable[[Work, Caught], None]) -> None:
        self._tell = ended

    def start(self, work: Work) -> None:
        self._busy += 1
        if self._busy > len(self._threads):
            self._started += 1
            thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._todo.put(work)

    def freed(self) -> None:
        """A worker has told of an end, and can take other work."""
        self._busy -= 1

    def stop(self, work: Work) -> Place:
        if not work.close():
            return "ending"  # it came back at the same moment, and is about to tell
        self._busy -= 1
        if work.worker:  # else nobody has begun it, and nobody will
            self._threads = {thread for thread in self._threads if thread.name != work.worker}
        return "free"

    def close(self) -> None:
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = set()

    def owns_this_thread(self) -> bool:
        return threading.current_thread() in self._threads

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            self._leave()

    def _work(self) -> None:
        name = threading.current_thread().name
        while (work := self._todo.get()) is not None:
            if not work.take(name):
                self._tell(work, Caught(False, None))
                continue
            caught = self._carry(work)
            work.ended = clock.monotonic()
            kept = work.close()
            self._tell(work, caught)
            if not kept:
                return
            del work, caught  # an idle worker keeps nobody's values alive

    def _carry(self, work: Work) -> Caught:
        call = work.call
        return perform(call.function, call.args, call.kwargs, work.context)

    def _leave(self) -> None:
        """The last thing this thread does."""


def _nobody(work: Work, caught: Caught) -> None:
    """Until the engine says whom to tell."""
