"""One call that is wanted, one attempt at it, and what every kind of worker has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from inspect import CO_COROUTINE, iscoroutinefunction
from threading import Lock, Thread
from types import CoroutineType, FunctionType
from typing import Any, Literal, NamedTuple, Protocol

from necrocode import clock
from necrocode.context import TaskContext
from necrocode.errors import ConfigError, NecrocodeError, TaskFailed, TaskTimeoutError
from necrocode.outcome import Status
from necrocode.schedule import Entry

Function = Callable[..., Any]


class Unfit(ConfigError, TypeError):
    """What was given as work cannot be called, or not by these workers."""


class PoolClosed(NecrocodeError, RuntimeError):
    """Nothing more is taken on: this was shut down."""

    def __init__(self, what: str = "the pool") -> None:
        super().__init__(f"{what} was shut down and takes no more tasks", hint="make a new one, or submit earlier")
        self.what = what


class Caught(NamedTuple):
    """How a call ended: `value` is what it returned when `ok`, else what it raised."""

    ok: bool
    value: Any


class Call(NamedTuple):
    """What to call, the schedule's entry for it, and who is told of its end: `settled` gets this call, DONE,
    FAILED, TIMED_OUT or CANCELLED, and what the last attempt returned or raised.

    `deadline` is seconds for one attempt as its TaskContext has them; the entry's own timeout, when the attempt is
    ended by force, may be later. `retry` says of an exception whether another attempt makes sense. `packed` is the
    call as a message to another process. `name` is for people."""

    entry: Entry
    function: Function
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    settled: Callable[[Any, Status, Caught], None]
    deadline: float | None = None
    retry: Callable[[BaseException], bool] | None = None
    packed: bytes = b""
    name: str = ""


class Work:
    """One attempt at a call. `began` and `ended` are seconds on the boot's clock; `worker` names who carries it."""

    __slots__ = ("_guard", "attempt", "began", "call", "closed", "context", "ended", "future", "hold", "worker")

    def __init__(self, call: Call, attempt: int) -> None:
        self.call, self.attempt = call, attempt
        self.context = TaskContext(call.deadline, task_id=call.entry.id)
        self.began = self.ended = 0.0
        self.worker = ""
        self.future: Any = None
        self.hold: Any = None
        self.closed = False
        self._guard = Lock()

    def take(self, worker: str) -> bool:
        """This worker begins; False when the attempt was given up before."""
        with self._guard:
            if not self.closed:
                self.worker, self.began = worker, clock.monotonic()
            return not self.closed

    def close(self) -> bool:
        """True for the first who asks, and for nobody after: the worker at its end, or who gives the worker up."""
        with self._guard:
            was, self.closed = self.closed, True
            return not was


def timeout_of(work: Work) -> TaskTimeoutError:
    """What an attempt that was ended for its time has failed with."""
    limit = work.call.deadline or work.call.entry.timeout or 0.0
    elapsed = work.ended - work.began if work.ended and work.began else limit
    return TaskTimeoutError(elapsed, limit, work.context.collected_traces, task_id=work.call.name)


Place = Literal["free", "taken", "ending"]
"""What becomes of a worker that is told to stop: it can take other work, it is busy until it returns, or it tells
of its end in a moment."""


class Workers(Protocol):
    """Those who carry attempts. Everything is called by the engine's thread alone."""

    grace: float
    """Seconds after the deadline in which an attempt may end by itself before it is ended by force."""

    most: int | None
    """How many attempts they can carry at once, when that is known."""

    def serve(self, ended: Callable[[Work, Caught], None]) -> None:
        """Before anything else: whom to tell of each end, from any thread."""

    def start(self, work: Work) -> None: ...

    def freed(self) -> None:
        """An attempt was told to have ended."""

    def stop(self, work: Work) -> Place: ...

    def close(self) -> None:
        """Let the idle ones go and wait for them; those that were given up are not waited for."""

    def owns_this_thread(self) -> bool: ...


def perform(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: TaskContext) -> Caught:
    """Call it here, with this as the current TaskContext, and catch whatever comes of it."""
    return Context().run(_perform, function, args, kwargs, context)


def _perform(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: TaskContext) -> Caught:
    context.restart()
    context.enter()
    return attempt(function, args, kwargs)


def attempt(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Caught:
    """Call it and catch whatever comes of it."""
    try:
        value = function(*args, **kwargs)
        if isinstance(value, CoroutineType):
            value.close()
            raise Unfit("the work returned a coroutine, which nobody awaits here", hint="give a plain function")
        return Caught(True, value)
    except BaseException as error:  # noqa: BLE001 - whatever work raises is how it ended, a SystemExit too
        return Caught(False, error)


def perform_there(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], deadline: float | None, task_id: str
) -> Any:
    """The same for an executor that passes on by itself what is returned or raised."""
    caught = perform(function, args, kwargs, TaskContext(deadline, task_id=task_id))
    if caught.ok:
        return caught.value
    raise caught.value


def checked_work(function: Any, args: Any, kwargs: Any) -> None:
    """Raises Unfit for what no worker could call."""
    if not callable(function):
        raise Unfit(f"{function!r} cannot be called", hint="give a function and its arguments apart from each other")
    if _is_async(function):
        raise Unfit(f"{function!r} is a coroutine function", hint="use necrocode.parallel for coroutines")
    if not isinstance(args, (tuple, list)):
        raise Unfit(f"args {args!r} is no tuple", hint="one argument is written args=(value,)")
    if type(kwargs) is not dict and not isinstance(kwargs, Mapping):
        raise Unfit(f"kwargs {kwargs!r} is no mapping", hint="give a dict of names and values")
    if kwargs and not all(isinstance(name, str) for name in kwargs):
        raise Unfit(f"kwargs {kwargs!r} has names that are no text", hint="give a dict of names and values")


def _is_async(function: Function) -> bool:
    if isinstance(function, FunctionType):
        return bool(function.__code__.co_flags & CO_COROUTINE)
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


def told(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def foreign_failure(error: BaseException, trace: str, what: str, task_id: str) -> TaskFailed:
    """What stands for an exception that cannot travel between processes."""
    failed = TaskFailed(f"{told(error)} ({what})", task_id=task_id, hint="make it picklable to get it as it is")
    failed.add_note(trace)
    return failed


def has_ended(thread: Thread, seconds: float) -> bool:
    """Whether it ends within so many seconds."""
    thread.join(seconds)
    return not thread.is_alive()
