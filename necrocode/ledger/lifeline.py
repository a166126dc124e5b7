"""The lifeline: a file that its process holds locked for life. The kernel lets go of it when the process dies.

Its first bytes are the heartbeat stamp, written in place (17 bytes, never torn), then a flag and since when:
`<stamp> - 0` normally, `<stamp> P <since>` inside a publishing window. Clocks are the boot's monotonic one.
"""

from __future__ import annotations

import fcntl
import os
import resource
import time
from contextlib import suppress
from pathlib import Path

from necrocode.liveness import Seen
from necrocode.statedir import UNSHARED, StateDir, flock, read

_HIGH = 500
_STAMP = 17
_owned: set[int] = set()
"""Lifelines that end with this process: a forked child must let go of its copies."""


def create(state: StateDir, runner_id: str, *, tree: bool) -> tuple[int, Path]:
    """A new lifeline under tmp/, already locked and stamped: descriptor and path."""
    path = state.tmp / f"live.{runner_id}.{os.getpid()}.{os.urandom(3).hex()}"
    low = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | UNSHARED, state.file_mode)
    try:
        flock(low, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(low, f"{time.monotonic():017.6f} - {0:017.6f}\n".encode(), 0)
        descriptor = raised(low)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(low)
    if not tree:
        _owned.add(descriptor)
    return descriptor, path


def raised(descriptor: int) -> int:
    """The same open file on a high number: a dying process closes those last to be opened first, so that its
    death is told at once instead of after the slow closing of other things."""
    high = min(_HIGH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, high)


def stamp(descriptor: int) -> None:
    """The heartbeat: one write in place."""
    os.pwrite(descriptor, f"{time.monotonic():017.6f}".encode(), 0)


def mark_publishing(descriptor: int, publishing: bool) -> None:
    now = time.monotonic()
    os.pwrite(descriptor, f"{now:017.6f} {'P' if publishing else '-'} {now if publishing else 0:017.6f}".encode(), 0)


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether some live process holds this lifeline."""
    try:
        descriptor = os.open(path, os.O_RDONLY | UNSHARED)
    except FileNotFoundError:
        return False
    try:
        flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def last_stamp(path: str | os.PathLike[str]) -> tuple[float, float | None] | None:
    """The stamp, and since when a publishing window is open (None outside one); None when it cannot be read."""
    try:
        words = read(path).split()
        return float(words[0]), float(words[2]) if words[1] == b"P" else None
    except (OSError, ValueError, IndexError):
        return None


def look(path: str | os.PathLike[str], now: float) -> Seen:
    """What can be seen of a holder on this machine's clock at `now`."""
    if not is_held(path):
        return Seen(held=False)
    stamped = last_stamp(path)
    if stamped is None:
        return Seen(held=True)
    at, since = stamped
    return Seen(held=True, silent=now - at, publishing=None if since is None else now - since)


def close(descriptor: int) -> None:
    _owned.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


def _let_go_in_child() -> None:
    for descriptor in _owned:
        with suppress(OSError):
            os.close(descriptor)
    _owned.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
