"""The TMPDIR of an attempt: private, short enough a path, and gone afterwards.

It does not lie in the attempt's folder: a socket's path has 107 bytes, and programs make theirs below TMPDIR. Its
name follows from that folder, so whoever cleans up after a runner that was killed finds it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from necrocode.workspace import delete_tree


def place_of(folder: Path) -> str:
    """Where the scratch directory of the attempt in this folder is."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return os.path.join(tempfile.gettempdir(), f"necrocode-{name}")


def make(path: str) -> None:
    """A directory that is ours alone. Raises OSError, also when somebody else has put something there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not _is_ours(path):
            raise FileExistsError(errno.EEXIST, "somebody else has put something there", path) from None


def remove(folder: Path) -> None:
    """Remove the scratch directory of an attempt at whose work no process is any more."""
    path = place_of(folder)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        if _is_ours(path):
            delete_tree(Path(path))


def _is_ours(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
