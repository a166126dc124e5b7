"""A folder for what is needed for a moment. What a killed process left of such, the next one removes.

They lie beside each other in one folder of the user's, below the system's for temporary files, which goes with the last
of them. Each is locked by the process that made it, for as long as that uses it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder of our own while the body runs. Raises OSError when none can be made."""
    path, handle = _made()
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)
            with suppress(OSError):  # others are in it
                os.rmdir(os.path.dirname(path))


def _home() -> str:
    return os.path.join(tempfile.gettempdir(), f"necrocode-{os.geteuid()}.aside")


def _made() -> tuple[str, int | None]:
    """The folder, and what keeps it locked; where that cannot be, one that nobody else will ever remove."""
    for _ in range(100):
        home = _home()
        with suppress(FileExistsError):
            os.mkdir(home, 0o700)
        if not _is_ours(home):
            break
        try:
            _clear(home)
            path = tempfile.mkdtemp(dir=home)
        except FileNotFoundError:
            continue  # the last one that was in there has just taken it along
        try:
            return path, _locked(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # before we had locked it, another took it for a dead one's
        except OSError:
            os.rmdir(path)
            break
    return tempfile.mkdtemp(prefix="necrocode-"), None


def _is_ours(home: str) -> bool:
    """Whether nobody else can have put anything in there."""
    try:
        found = os.lstat(home)
    except FileNotFoundError:
        return True  # gone again: whoever makes something in it will see
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _locked(path: str) -> int:
    handle = os.open(path, _OPEN)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _clear(home: str) -> None:
    for name in os.listdir(home):
        path = os.path.join(home, name)
        with suppress(OSError):  # in use, or gone
            handle = _locked(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(handle)
