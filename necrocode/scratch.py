"""The TMPDIR of an attempt: private, short enough a path, empty at first, and gone afterwards.

It does not lie in the attempt's folder: a socket's path has 107 bytes, and programs make theirs below TMPDIR. Its
name follows from that folder, or, in a process that carries one attempt after another, from that process: whoever
cleans up after a runner that was killed finds it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from necrocode.lease import Identity
from necrocode.workspace import delete_tree


def place_of(folder: Path) -> str:
    """Where the scratch directory of the attempt in this folder is."""
    return _place(os.fsencode(folder))


def place_of_process(carrier: Identity) -> str:
    """Where a process has its own, which it uses for all the attempts that it carries."""
    return _place(repr((carrier.boot_id, carrier.pid_namespace, carrier.pid, carrier.start_ticks)).encode())


def _place(owner: bytes) -> str:
    return os.path.join(tempfile.gettempdir(), f"necrocode-{hashlib.sha256(owner).hexdigest()[:12]}")


def make(path: str) -> None:
    """A directory that is ours alone. Raises OSError, also when somebody else has put something there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not _is_ours(path):
            raise FileExistsError(errno.EEXIST, "somebody else has put something there", path) from None


def empty(path: str) -> None:
    """Leave nothing in it, so that the next attempt may have it: making and removing directories is slow."""
    try:
        if _is_ours(path) and not os.listdir(path):
            return
    except OSError:
        pass  # gone, or made unreadable
    remove(path)


def remove(path: str) -> None:
    """Remove a scratch directory that no process uses any more."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        if _was_ours(path):
            delete_tree(Path(path))


def remains(folder: Path, carrier: Identity | None) -> list[str]:
    """What is there of an attempt whose carrier has ended, and maybe of another one of that carrier."""
    places = [place_of(folder), *([place_of_process(carrier)] if carrier else [])]
    return [path for path in places if _was_ours(path)]


def _is_ours(path: str) -> bool:
    return _mode(path) == 0o700


def _was_ours(path: str) -> bool:
    """Whether we made it; whoever worked in it may have let others in."""
    return _mode(path) is not None


def _mode(path: str) -> int | None:
    """Who may do what in this directory of ours; None when it is none, or not ours."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return stat.S_IMODE(found.st_mode) if ours else None
