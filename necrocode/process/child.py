"""Start one program in a session of its own, watch its clocks, keep its output, and end everything it started."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from necrocode import clock
from necrocode.process import tree as trees
from necrocode.process import who
from necrocode.process.capture import OnLine, Streams
from necrocode.process.orphans import adopting
from necrocode.process.stop import Stoppable

if TYPE_CHECKING:
    from subprocess import Popen

QUIET = 0.2
"""Seconds that what a leader left behind is given to end by itself, before it is ended."""

LOOK = 5.0
"""Seconds between looks at a running tree, in the long run; sooner at first, when most is started."""

TICK = 0.1
"""Seconds between looks at what cannot wake us: a `stop` without a descriptor, a leader where there is no pidfd."""

Why = Literal["exited", "timeout", "silent", "lingered", "stopped", "not_found", "not_executable"]


class Limits(NamedTuple):
    """The clocks and bounds of one program, in seconds and bytes; None is no limit.

    `total` from its start; `silent` since its last output; `after_result` since `on_line` returned True;
    `grace` between SIGTERM and SIGKILL. `log_bytes` is what is kept of each stream, `line_bytes` what `on_line`
    gets of a line."""

    total: float | None = None
    silent: float | None = None
    grace: float = 10.0
    after_result: float | None = None
    log_bytes: int = 10 << 20
    line_bytes: int = 1 << 16


class Ended(NamedTuple):
    """How a program ended.

    `exit_code` is None when a signal ended it (`signal`) or somebody else took its status; 127 and 126 when it was
    not found or not executable (`error` has the system's words). `why` says who ended it: itself ("exited"), or
    which clock or wish. `cpu_seconds` and `max_rss_mb` (2**20 bytes, of the largest process) are those of the
    leader and of all its descendants that were waited for. `survivors` are processes that could not be ended.
    `log_error` tells why the logs are not complete; `truncated`, that output was beyond its bound."""

    exit_code: int | None
    signal: int | None
    why: Why
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    max_rss_mb: float = 0.0
    survivors: tuple[int, ...] = ()
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False
    log_error: str = ""
    error: str = ""


def run(
    argv: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    limits: Limits,
    marker: str,
    pass_fds: Sequence[int] = (),
    stdin_text: str | None = None,
    stop: Stoppable | None = None,
    on_line: OnLine | None = None,
    on_started: Callable[[int], None] | None = None,
    adopt: bool = False,
) -> Ended:
    """Run a program to its end, and its whole tree with it; no shell, no terminal, nothing on stdin unless given.

    `stdout` and `stderr` are appended to as `capture.Log` does; the same path twice makes one stream of both.
    `on_line("stdout" | "stderr", line)` gets each line, `on_started(pid)` the leader. `marker` must be this run's
    alone. Several threads may run programs at once. While one runs, orphans of this process's descendants become
    its children; with `adopt` all that are not of its own session are taken for this run's: only for processes
    that start nothing else meanwhile.

    Raises OSError when the system cannot start any program now or `cwd` is none, and whatever a callback raises,
    once the tree has been ended."""
    if not os.path.isdir(cwd):
        raise NotADirectoryError(errno.ENOTDIR, "there is no such directory to run in", str(cwd))
    with adopting() as below, Streams(stdout, stderr, limits.log_bytes, limits.line_bytes, on_line) as streams:
        began, ticks = clock.monotonic(), who.ticks_now()
        try:
            child = _start(argv, cwd, {**env, trees.MARKER: marker}, streams, pass_fds, stdin_text)
        except OSError as error:
            return never_started(error, argv[0], env, cwd)
        running = _Running(child, began, limits, streams, stop)
        trees.leaders[child.pid] = marker
        try:
            running.watch(marker, trees.Begun(child.pid, ticks), below, adopt)
            if on_started:
                on_started(child.pid)
            running.carry()
        finally:
            running.end_now()
        return running.ended()


def warm() -> None:
    """Load what only the first program would load, before this process is forked."""
    import ctypes  # noqa: F401
    import subprocess  # noqa: F401


def never_started(error: OSError, program: str, env: Mapping[str, str], cwd: str | Path) -> Ended:
    """How a program ended that the system refused to start; raises the error where it could start none now."""
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        raise error
    # Not by the error alone: a directory in PATH that may not be searched hides what is missing elsewhere.
    places = [""] if "/" in program else os.get_exec_path(env)
    found = next((path for place in places if os.path.exists(path := os.path.join(cwd, place, program))), None)
    if found is None and (error.errno == errno.ENOENT or "/" not in program):
        return Ended(127, None, "not_found", error=f"{program}: {os.strerror(errno.ENOENT)}")
    why = error.strerror
    if found and error.errno == errno.ENOENT:
        why = f"its interpreter {_interpreter(found)} is not there"
    elif error.errno == errno.E2BIG:
        why = f"{why}; put long text into a file"
    return Ended(126, None, "not_executable", error=f"{program}: {why}")


def _interpreter(script: str) -> str:
    try:
        with open(script, "rb") as file:
            first = file.readline(256)
    except OSError:
        return "or loader"
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else "or loader"


def _start(
    argv: Sequence[str],
    cwd: str | Path,
    env: dict[str, str],
    streams: Streams,
    pass_fds: Sequence[int],
    stdin_text: str | None,
) -> Popen[bytes]:
    import subprocess

    encoded = {_encoded(key): _encoded(value) for key, value in env.items()}
    stdin = subprocess.DEVNULL if stdin_text is None else _memory(stdin_text)
    try:
        return subprocess.Popen(
            list(argv), cwd=cwd, env=encoded, stdin=stdin, stdout=streams.theirs[0], stderr=streams.theirs[-1],
            pass_fds=tuple(pass_fds), start_new_session=True,
        )  # fmt: skip
    finally:
        streams.started()
        if stdin >= 0:
            os.close(stdin)


_encoded = lru_cache(1024)(os.fsencode)  # most of an environment is that of the program before


def _memory(text: str) -> int:
    """A descriptor to read the text from: no pipe, so nobody has to write while the other side does not read."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    left = text.encode("utf-8", "surrogateescape")
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class _Running:
    """One program from its start to its end."""

    def __init__(
        self, child: Popen[bytes], began: float, limits: Limits, streams: Streams, stop: Stoppable | None
    ) -> None:
        self._child, self._began, self._limits, self._streams, self._stop = child, began, limits, streams, stop
        self._why: Why = "exited"
        self._status: int | None = None
        self._dead = self._over = False
        self._cpu = self._rss = 0.0
        self._pidfd = -1
        self._tree = trees.Tree("", None)
        self._ending: trees.Ending | None = None
        self._look_at, self._look_pause = began + 0.05, 0.1
        self._poll = select.poll()

    def watch(self, marker: str, begun: trees.Begun, below: bool, adopt: bool) -> None:
        """Know the leader and be woken by what it does."""
        self._tree = trees.Tree(marker, begun, below=below, adopt=adopt)
        for fd in self._streams.ours:
            self._poll.register(fd, select.POLLIN)
        try:
            self._pidfd = os.pidfd_open(self._child.pid)
            self._poll.register(self._pidfd, select.POLLIN)
        except (AttributeError, ProcessLookupError):
            pass  # another system; or it has ended and SIGCHLD is ignored, so that no zombie was left
        wakes = getattr(self._stop, "fileno", None)
        if wakes:
            self._poll.register(wakes(), select.POLLIN)
            self._tick = math.inf
        else:
            self._tick = TICK if self._stop or self._pidfd < 0 else math.inf

    def carry(self) -> None:
        while (pause := self._step(clock.monotonic())) is not None:
            self._wait(pause)
        self._reap()  # it may have ended in the very last step
        self._streams.drain()
        self._over = True

    def _step(self, now: float) -> float | None:
        """Do what is due; seconds until the next step at the latest, or None when all is over."""
        self._reap()
        if self._ending is None and self._dead:
            self._ending = trees.Ending(self._tree, self._limits.grace, quiet=now + QUIET)
        if self._ending is None and (why := self._due(now)):
            self._why = why
            self._ending = trees.Ending(self._tree, self._limits.grace)
        if self._ending is not None:
            return self._ending.step(now)
        if now >= self._look_at:
            self._tree.look()
            self._look_at, self._look_pause = now + self._look_pause, min(2 * self._look_pause, LOOK)
        return self._next(now)

    def _clocks(self) -> Iterator[tuple[float, Why]]:
        limits, streams = self._limits, self._streams
        if limits.total is not None:
            yield self._began + limits.total, "timeout"
        if limits.silent is not None:
            yield streams.heard_at + limits.silent, "silent"
        if limits.after_result is not None and streams.result_at is not None:
            yield streams.result_at + limits.after_result, "lingered"

    def _due(self, now: float) -> Why | None:
        if self._stop is not None and self._stop.is_set():
            return "stopped"
        return next((why for at, why in self._clocks() if now >= at), None)

    def _next(self, now: float) -> float:
        return min([self._tick, self._look_at - now, *(at - now for at, _ in self._clocks())])

    def _wait(self, seconds: float) -> None:
        # Rounded up, or the last millisecond before a deadline would be spent asking again and again.
        for fd, _ in self._poll.poll(max(0, math.ceil(seconds * 1000))):
            if fd in self._streams.ours:
                self._streams.take(fd)
                if fd in self._streams.ours:
                    continue
            self._poll.unregister(fd)  # said all it has to say

    def _reap(self) -> None:
        if self._dead:
            return
        try:
            pid, status, usage = os.wait4(self._child.pid, os.WNOHANG)
        except ChildProcessError:
            self._tree.parted()
            self._dead, self._child.returncode = True, 0  # somebody else took its status
            return
        if pid:
            self._dead, self._status = True, status
            self._tree.parted()
            self._child.returncode = os.waitstatus_to_exitcode(status)
            self._cpu = usage.ru_utime + usage.ru_stime
            self._rss = usage.ru_maxrss / 1024

    def end_now(self) -> None:
        """End the tree at once when a callback or an interrupt broke in; in any case give everything back."""
        try:
            ending = trees.Ending(self._tree, 0.0)
            while not self._over and (pause := ending.step(clock.monotonic())) is not None:
                time.sleep(pause)
                self._reap()
        finally:
            self._reap()
            if not self._dead and not self._over:
                os.killpg(self._child.pid, signal.SIGKILL)
            if self._pidfd >= 0:
                os.close(self._pidfd)
            trees.leaders.pop(self._child.pid, None)

    def ended(self) -> Ended:
        self._streams.close()
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        logs = self._streams.logs
        return Ended(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            why=self._why,
            seconds=clock.monotonic() - self._began,
            cpu_seconds=self._cpu + self._tree.cpu_seconds,
            max_rss_mb=self._rss,
            survivors=self._ending.survivors if self._ending else (),
            stdout_bytes=logs["stdout"].seen,
            stderr_bytes=logs["stderr"].seen if "stderr" in logs else 0,
            truncated=any(log.truncated for log in logs.values()),
            log_error="; ".join(log.error for log in logs.values() if log.error),
        )
