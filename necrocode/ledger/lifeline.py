"""The lifeline: a file that its process holds locked for life. The kernel lets go of it when the process dies.

Its first bytes are the heartbeat stamp, written in place (17 bytes, never torn), then a flag and since when:
`<stamp> - 0` normally, `<stamp> P <since>` inside a publishing window. Clocks are the boot's monotonic one.
"""

from __future__ import annotations

import fcntl
import os
import resource
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from necrocode.liveness import Seen
from necrocode.statedir import UNSHARED, StateDir, flock, share

_HIGH = 500
_owned: set[int] = set()
"""Lifelines and bells that end with this process: a forked child must let go of its copies."""
making = threading.Lock()
"""Held while a lifeline or bell is made, and by whoever forks: no child may get a copy that it does not know of."""


def create(state: StateDir, runner_id: str, *, tree: bool) -> tuple[int, str]:
    """A new lifeline under tmp/, already locked and stamped: descriptor and path."""
    path = f"{state.root}/tmp/live.{runner_id}.{os.getpid()}.{os.urandom(3).hex()}"
    with making:
        return _locked(path, state.file_mode, tree), path


def _locked(path: str, mode: int, tree: bool) -> int:
    low = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | UNSHARED, mode)
    try:
        flock(low, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        share(low, mode)
        os.pwrite(low, f"{time.monotonic():017.6f} - {0:017.6f}\n".encode(), 0)
        return raised(low, tree=tree)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        with suppress(OSError):
            os.close(low)


def raised(descriptor: int, *, tree: bool = False) -> int:
    """The same open file on a high number: a dying process closes those last to be opened first, so that its
    death is told at once instead of after the slow closing of other things. Unless `tree`, a forked child lets go
    of it. Call it while `making` is held."""
    high = min(_HIGH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    copy: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, high)
    if not tree:
        _owned.add(copy)
    return copy


def stamp(descriptor: int) -> None:
    """The heartbeat: one write in place."""
    os.pwrite(descriptor, f"{time.monotonic():017.6f}".encode(), 0)


def mark_publishing(descriptor: int, publishing: bool) -> None:
    now = time.monotonic()
    os.pwrite(descriptor, f"{now:017.6f} {'P' if publishing else '-'} {now if publishing else 0:017.6f}".encode(), 0)


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether some live process holds this lifeline."""
    return _probe(path) is not None


def _probe(path: str | os.PathLike[str]) -> bytes | None:
    """What a held lifeline says; None when nobody holds it or there is none."""
    try:
        # Not blocking: what lies in its place may be a FIFO, and nobody may hang in here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | UNSHARED)
    except FileNotFoundError:
        return None
    try:
        flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, path)
        return None
    except BlockingIOError:
        return os.pread(descriptor, 64, 0)
    finally:
        os.close(descriptor)


class Stamp(NamedTuple):
    """When the holder last renewed, and since when its publishing window is open (None outside one): on its clock."""

    at: float
    publishing: float | None


def last_stamp(path: str | os.PathLike[str]) -> Stamp | None:
    """The stamp of a held lifeline; None when nobody holds it or it cannot be read."""
    return _parsed(_probe(path) or b"")


def _parsed(text: bytes) -> Stamp | None:
    try:
        words = text.split()
        return Stamp(float(words[0]), float(words[2]) if words[1] == b"P" else None)
    except (ValueError, IndexError):
        return None


def look(path: str | os.PathLike[str], now: float) -> Seen:
    """What can be seen of a holder on this machine's clock at `now`."""
    text = _probe(path)
    if text is None:
        return Seen(held=False)
    stamp = _parsed(text)
    if stamp is None:
        return Seen(held=True)
    return Seen(True, now - stamp.at, None if stamp.publishing is None else now - stamp.publishing)


def is_ours(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Whether the lifeline at this place is the one that this descriptor holds locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def close(descriptor: int) -> None:
    _owned.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


def _let_go_in_child() -> None:
    for descriptor in _owned:
        with suppress(OSError):
            os.close(descriptor)
    _owned.clear()
    making.release()


os.register_at_fork(before=making.acquire, after_in_parent=making.release, after_in_child=_let_go_in_child)
