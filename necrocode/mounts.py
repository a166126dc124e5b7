"""On what kind of file system a path lies, and locks between processes where they can be trusted."""

from __future__ import annotations

import errno
import fcntl
import os
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
