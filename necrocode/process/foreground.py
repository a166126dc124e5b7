"""A program in the foreground: it has this process's terminal, streams and process group, and nothing is captured.

What the terminal sends (Ctrl-C) reaches it directly; what is sent to this process alone is passed on to it.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from necrocode import clock
from necrocode.process import tree as trees
from necrocode.process.child import Ended, Why, never_started

PASSED_ON = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)  # fmt: skip
_WATCHED = PASSED_ON | {signal.SIGCHLD}
_OURS = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Signals that the interpreter ignores, and that the program must not inherit as ignored."""


class Halt:
    """A wish to end the program in the foreground; may be set from any thread."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True
        os.kill(os.getpid(), signal.SIGCHLD)

    def is_set(self) -> bool:
        return self._set


@contextmanager
def signals_held() -> Iterator[None]:
    """While its body runs, signals that are to be passed on wait until `foreground` takes them. For the main thread,
    before any other thread is started: threads inherit it."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the kernel would throw the program's status away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def foreground(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    marker: str,
    pass_fds: Sequence[int] = (),
    time_limit: float | None = None,
    grace: float = 10.0,
    halt: Halt | None = None,
) -> Ended:
    """Run a program to its end, inside `signals_held()`. When its time (seconds) is over or `halt` is set, its whole
    tree is ended; when it ends by itself, what it left in the background goes on.

    `marker` must be this run's alone. Raises OSError when the system cannot start any program now."""
    began = clock.monotonic()
    for fd in pass_fds:
        os.set_inheritable(fd, True)
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), {**env, trees.MARKER: marker},
            setsigmask=signal.pthread_sigmask(signal.SIG_BLOCK, ()) - _WATCHED, setsigdef=_OURS,
        )  # fmt: skip
    except OSError as error:
        return never_started(error, argv[0], env, "")
    finally:
        for fd in pass_fds:
            os.set_inheritable(fd, False)
    return _Watched(pid, began, marker, grace).until_ended(time_limit, halt)


class _Watched:
    """The program from its start to its end."""

    def __init__(self, pid: int, began: float, marker: str, grace: float) -> None:
        self._pid, self._began, self._marker, self._grace = pid, began, marker, grace
        self._status: int | None = None
        self._cpu = self._rss = 0.0
        self._why: Why = "exited"
        self._survivors: tuple[int, ...] = ()

    def until_ended(self, time_limit: float | None, halt: Halt | None) -> Ended:
        deadline = math.inf if time_limit is None else self._began + time_limit
        while not self._reaped():
            left = deadline - clock.monotonic()
            if left <= 0 or (halt and halt.is_set()):
                self._why = "timeout" if left <= 0 else "stopped"
                self._end_tree()
                break
            self._take_signal(min(left, 3600.0))
        return self._ended()

    def _take_signal(self, seconds: float) -> None:
        info = signal.sigtimedwait(_WATCHED, seconds)
        # What the kernel itself sent came from the terminal, which sent it to the program too.
        if info and info.si_signo != signal.SIGCHLD and info.si_code <= 0 and not self._reaped():
            os.kill(self._pid, info.si_signo)

    def _reaped(self) -> bool:
        if self._status is None:
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                self._status = status
                self._cpu, self._rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        return self._status is not None

    def _end_tree(self) -> None:
        ending = trees.Ending(trees.Tree(self._marker, None), self._grace)
        while (pause := ending.step(clock.monotonic())) is not None:
            signal.sigtimedwait({signal.SIGCHLD}, pause)
            self._reaped()
        self._reaped()
        self._survivors = ending.survivors

    def _ended(self) -> Ended:
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        return Ended(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            why=self._why,
            seconds=clock.monotonic() - self._began,
            cpu_seconds=self._cpu,
            max_rss_mb=self._rss,
            survivors=self._survivors,
        )
