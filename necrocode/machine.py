"""The checks of `necrocode doctor` that concern the machine: git, the libraries, descriptors, inotify."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from necrocode import git

_LIBRARIES = {"filelock": (4, 0, 12), "psutil": (5, 9, 8), "pydantic": (2, 7), "click": (8, 1, 7), "rich": (13, 7)}
_FILES = 1024


class Finding(NamedTuple):
    """One thing that was looked at: its name, whether it is well, what was seen, and the command that puts it right.

    `mend` does what `doctor --fix` may do by itself."""

    name: str
    ok: bool
    said: str
    fix: str = ""
    mend: Callable[[], object] | None = None


def of_git(where: Path) -> Iterator[Finding]:
    said = git.run("version", cwd="/").stdout.strip().removeprefix("git version ")
    version = _numbers(said)
    oldest = ".".join(map(str, git.OLDEST))
    if version < git.OLDEST:
        yield Finding("git", False, f"{said} is too old: {oldest} or newer is needed", "apt install git")
    else:
        yield Finding("git", True, f"{said}, with work trees")
    for lock in git.old_locks(where):
        yield Finding("git", False, f"{lock.name} is of a git that was killed, or hangs", f"rm '{lock}' when none runs")


def _numbers(text: str) -> tuple[int, ...]:
    found = []
    for part in text.replace("-", ".").split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def libraries() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    told = []
    for name, least in _LIBRARIES.items():
        wanted = ".".join(map(str, least))
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, False, "is not installed", f"pip install '{name}>={wanted}'")
            continue
        if _numbers(found) < least:
            yield Finding(name, False, f"{found} is older than {wanted}", f"pip install -U '{name}>={wanted}'")
        else:
            told.append(f"{name} {found}")
    yield Finding("libraries", True, ", ".join(told))


def descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(4 * _FILES, hard) if hard != resource.RLIM_INFINITY else 4 * _FILES
    ok = soft == resource.RLIM_INFINITY or soft >= _FILES
    yield Finding("descriptors", ok, f"{soft} open files for each process", "" if ok else f"ulimit -n {most}")


def inotify() -> Iterator[Finding]:
    if sys.platform != "linux":
        yield Finding("inotify", True, "not on this system; waiters look by themselves")
        return
    most = Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
    descriptor = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        fix = "sysctl fs.inotify.max_user_instances=1024"
        yield Finding("inotify", False, f"all {most} instances are in use: deaths are noticed seconds later", fix)
        return
    os.close(descriptor)
    yield Finding("inotify", True, f"{most} instances for each user")
