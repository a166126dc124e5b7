"""Whether a directory can be trusted: whose it is, on what file system it lies, and locks between processes there."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from necrocode.errors import StateUnusable

_REMOTE = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "fuse.glusterfs", "fuse.sshfs"),
    *("9p", "virtiofs", "fakeowner"),  # what virtual machines see of their host
}
_MOUNTS = "/proc/self/mountinfo"


def filesystem(path: Path) -> str:
    """The type of the file system that holds the path ("" where /proc does not tell)."""
    try:
        mounts = Path(_MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in reversed(mounts):
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""


def refuse_remote(path: Path) -> None:
    kind = filesystem(path)
    if kind in _REMOTE and not os.environ.get("NECROCODE_UNSAFE_FILESYSTEM"):
        raise StateUnusable(
            str(path), f"is on {kind}, where locks between processes cannot be trusted",
            hint="put the state directory on a local disk (or set NECROCODE_UNSAFE_FILESYSTEM=1 at your own risk)",
        )  # fmt: skip


def flock(descriptor: int, operation: int, path: str | os.PathLike[str] = "") -> None:
    """fcntl.flock, with a file system that cannot do it told as such. Raises BlockingIOError when held elsewhere."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP):
            where = str(path) or f"descriptor {descriptor}"
            hint = "put the state directory on a local disk"
            raise StateUnusable(where, "this file system has no flock", hint=hint) from error
        raise


def trusted(root: Path) -> bool:
    """Before anything is written: whose directory this is, who else may write to it, and what it lies on. Whether it
    is shared by its group."""
    found = os.stat(root)
    if not stat.S_ISDIR(found.st_mode):
        raise StateUnusable(str(root), "is not a directory")
    shared = bool(found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IWGRP)
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not shared):
        mode = f"others may write to it (mode {found.st_mode & 0o7777:o})"
        raise StateUnusable(str(root), mode, hint=f"chmod 700 {root}")
    if found.st_uid != os.geteuid() and not shared:
        raise StateUnusable(str(root), f"it belongs to user {found.st_uid}, you are {os.geteuid()}")
    is_fixed = os.statvfs(root).f_flag & os.ST_RDONLY  # that may be looked at; who writes is refused then
    if not is_fixed and not os.access(root, os.W_OK | os.X_OK):
        raise StateUnusable(str(root), f"it cannot be written: {os.strerror(errno.EACCES)}")
    refuse_remote(root)
    return shared
