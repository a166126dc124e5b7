"""Workers that are processes: what does not end in time is killed, with everything it started.

Each worker is a child in a session of its own and is served by one thread here. Work travels pickled; what only
cloudpickle can pack (closures, lambdas) needs that package. A script that makes such workers at its top level must
do so under `if __name__ == "__main__":`, since each child imports it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from traceback import format_exception
from typing import Any

from necrocode import clock
from necrocode.context import TaskContext
from necrocode.errors import TaskFailed
from necrocode.futures.threads import Threads
from necrocode.futures.workload import Caught, Place, Unfit, Work, foreign_failure, perform
from necrocode.process.tree import MARKER, Ending, Tree, end_tree
from necrocode.process.who import identity, stat

_START = 60.0
"""Seconds within which a fresh child must say that it is there."""


def pack(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """The call as bytes that a child understands. Raises Unfit naming what cannot be pickled."""
    call = (function, tuple(args), dict(kwargs))
    try:
        return bytes(ForkingPickler.dumps(call))
    except (PicklingError, AttributeError, TypeError) as error:
        try:
            cloudpickle = importlib.import_module("cloudpickle")
        except ImportError:
            hint = 'use a function of a module, pip install cloudpickle, or executor="thread"'
            raise Unfit(f"this work cannot go to another process: {error}", hint=hint) from error
        try:
            return bytes(cloudpickle.dumps(call))
        except (PicklingError, AttributeError, TypeError) as cause:
            raise Unfit(f"this work cannot go to another process: {cause}", hint='use executor="thread"') from cause


class Processes(Threads):
    """As many children as there are attempts at once; each is used again until one of its attempts is ended by
    force."""

    def __init__(self, name: str = "worker", *, start_method: str = "forkserver") -> None:
        super().__init__(name, grace=0.0)
        self._context: Any = multiprocessing.get_context(start_method)
        self._carried: dict[int, _Child] = {}
        self._own = threading.local()

    def stop(self, work: Work) -> Place:
        child = self._carried.get(id(work))
        if child:
            child.ask_to_end()
        return "ending"

    def _carry(self, work: Work) -> Caught:
        work.began = 0.0  # not yet: its process may have to be started first
        try:
            child = self._own.child = getattr(self._own, "child", None) or _Child(self._context)
        except OSError as error:
            return Caught(False, error)  # no process can be started just now; another attempt may find room
        except RuntimeError as error:  # this is a worker itself, which imports the program
            hint = 'start the work under if __name__ == "__main__":, since each worker imports the program'
            return Caught(False, Unfit(f"no process can be started here: {str(error).strip()}", hint=hint))
        self._carried[id(work)] = child
        work.worker = child.name
        try:
            # Asked to end before it was known here whom to ask.
            caught = Caught(False, _ended(work)) if work.context.is_stopped else child.carry(work)
        finally:
            del self._carried[id(work)]
        if not child.alive:
            self._own.child = None
        return caught

    def _leave(self) -> None:
        child = getattr(self._own, "child", None)
        if child:
            child.close()


def _ended(work: Work) -> TaskFailed:
    return TaskFailed("its process was ended", task_id=work.call.name)


class _Child:
    """One process, as the thread that serves it sees it."""

    def __init__(self, context: Any) -> None:
        self._marker = f"worker-{os.getpid()}-{os.urandom(4).hex()}"
        self._conn, theirs = context.Pipe()
        self._wake, self._bell = context.Pipe(duplex=False)
        self._process = context.Process(target=serve, args=(theirs, self._marker), daemon=False)
        self._process.start()
        theirs.close()
        self.name = f"process-{self._process.pid}"
        self.alive = True
        # Its session is its own once it has spoken; from then on all of its tree can be known by that.
        self._ready = self._conn.poll(_START) and self._hear() is not None
        self._tree = Tree(self._marker, stat(self._process.pid or 0))

    def ask_to_end(self) -> None:
        """From any thread: what it carries is to be ended now."""
        with suppress(OSError):
            self._bell.send_bytes(b"!")

    def carry(self, work: Work) -> Caught:
        message = ForkingPickler.dumps((work.call.packed, work.call.deadline, work.call.entry.id))
        work.began = clock.monotonic()
        work.context.restart()
        try:
            self._conn.send_bytes(message)
        except OSError:
            return self._died(work)
        while self._conn not in wait([self._conn, self._wake]):
            self._wake.recv_bytes()
            if work.context.is_stopped:  # else it was meant for the one before
                self.end()
                return Caught(False, _ended(work))
        answer = self._hear()
        return self._died(work) if answer is None else answer

    def _hear(self) -> Caught | None:
        try:
            return Caught(*self._conn.recv())
        except (EOFError, OSError):
            return None

    def _died(self, work: Work) -> Caught:
        self.end()
        code = self._process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return Caught(False, TaskFailed(f"its process ended {how}", task_id=work.call.name))

    def close(self) -> None:
        """Let it go: it ends when nobody can speak to it any more, and what it left behind is ended."""
        self._conn.close()
        self._process.join(5)
        self.end()

    def end(self) -> None:
        """Kill it and everything it started."""
        self.alive = False
        ending = Ending(self._tree, 0.0)
        while (pause := ending.step(clock.monotonic())) is not None:
            time.sleep(pause)
        self._process.join()
        for end in (self._conn, self._wake, self._bell):
            end.close()


def serve(conn: Connection, marker: str) -> None:
    """What a child does: carry one call after the other until nobody is there to ask for any."""
    os.setsid()
    os.environ[MARKER] = marker
    threading.Thread(target=_follow_parent, args=(marker,), daemon=True).start()
    conn.send((True, os.getpid()))
    while True:
        try:
            packed, deadline, task_id = conn.recv()
        except EOFError:
            return
        caught = perform(_unpacked, (packed,), {}, TaskContext(deadline, task_id=task_id))
        conn.send_bytes(_answer(caught, task_id))


def _unpacked(packed: bytes) -> Any:
    # Unpacked where whatever it raises is the attempt's failure, not the child's end.
    function, args, kwargs = ForkingPickler.loads(packed)
    return function(*args, **kwargs)


def _follow_parent(marker: str) -> None:
    """When the program ends without a word, so does this process, with all it started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        end_tree(marker, identity(), grace=0.0)  # which spares this process
        os.killpg(0, signal.SIGKILL)


def _answer(caught: Caught, task_id: str) -> bytes:
    if not caught.ok:
        return _failure(caught.value, task_id)
    packed = perform(ForkingPickler.dumps, ((True, caught.value),), {}, TaskContext())
    if packed.ok:
        return bytes(packed.value)
    return _failure(Unfit(f"its result cannot be pickled: {packed.value}", hint="return plain data"), task_id)


def _failure(error: BaseException, task_id: str) -> bytes:
    trace = "".join(format_exception(error))
    error.add_note(f"In its process:\n{trace}")
    # There and back, since some exceptions can be packed but not unpacked.
    there = perform(lambda: ForkingPickler.loads(ForkingPickler.dumps(error)), (), {}, TaskContext())
    if not there.ok:
        error = foreign_failure(error, trace, "its exception cannot be pickled", task_id)
    return bytes(ForkingPickler.dumps((False, error)))
