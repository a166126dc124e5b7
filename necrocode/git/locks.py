"""Who may work on a repository, or fill a directory, at this moment."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.errors import GateTimeout, WorkspaceKept
from necrocode.git.calls import StrPath
from necrocode.git.repository import Repository
from necrocode.statedir import told

if TYPE_CHECKING:
    from filelock import FileLock


@contextmanager
def repository_mutex(state_root: Path, repository: Repository, *, timeout: float = 600.0) -> Iterator[int]:
    """Hold the one short lock of this repository around administrative steps; never across foreign code.

    Yields the lock's descriptor: given to `run(keep=...)`, the lock outlives a killed holder until its git has ended.
    Raises GateTimeout after `timeout` seconds, StateUnusable when it cannot be made or taken."""
    name = hashlib.sha256(os.fsencode(repository.common_dir)).hexdigest()[:16]
    from filelock import Timeout

    held: list[int] = []
    path = state_root / "mutex" / f"git-{name}"
    with told(path):
        lock = _lock(state_root, f"git-{name}", held)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise GateTimeout(str(path), timeout, "") from None
    try:
        yield held[0]
    finally:
        _let_go(lock, held[0])


def _let_go(lock: FileLock, descriptor: int) -> None:
    try:
        lock.release()
    except OSError:
        # It keeps the descriptor that it could not unlock, and a mutex that stays shut would stop everybody, us first
        # of all: something else is put under that number, so the file is closed and the lock gone.
        with suppress(OSError):
            os.dup2(2, descriptor, inheritable=False)
        with suppress(OSError):
            lock.release()


@contextmanager
def directory_lock(path: StrPath, *, timeout: float = 60.0) -> Iterator[int]:
    """Hold a directory while git fills it; yields a descriptor for `run(keep=...)`.

    A git whose starter was killed goes on alone, and holds the lock until it has ended. Raises WorkspaceKept when it
    does not end within `timeout` seconds."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + timeout
        while not _taken(handle):
            if time.monotonic() > until:
                raise WorkspaceKept(
                    os.fspath(path), f"a git of an earlier holder still works in it after {timeout:g} s"
                )
            time.sleep(random.uniform(0.002, 0.01))
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def checkout_turn(state_root: Path, *, patience: float = 10.0) -> Iterator[None]:
    """Wait for one of as many places as there are cores, so that of many checkouts the first is soon done.

    It orders, it does not protect: after `patience` seconds the caller goes on without a place. Bare flock on files
    opened once, because each try of a FileLock opens its file anew, and many wait here."""
    folder = _mutex_folder(state_root)
    names = [f"checkout-{number}" for number in range(os.cpu_count() or 1)]
    places = [
        os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _mode(folder)) for name in names
    ]
    try:
        until = time.monotonic() + patience
        while not any(map(_taken, random.sample(places, len(places)))) and time.monotonic() < until:
            time.sleep(random.uniform(0.001, 0.005))
        yield
    finally:
        for place in places:
            os.close(place)


def _mutex_folder(state_root: Path) -> Path:
    folder = state_root / "mutex"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _mode(folder: Path) -> int:
    return 0o600 | (stat.S_IMODE(folder.stat().st_mode) & 0o060)


def _lock(state_root: Path, name: str, held: list[int]) -> FileLock:
    from filelock import FileLock

    folder = _mutex_folder(state_root)
    return FileLock(
        folder / name, thread_local=False, fallback_to_soft=False, mode=_mode(folder), poll_interval=0.005,
        on_acquired=held.append,
    )  # fmt: skip
