"""Faults at system calls: inside `injected`, the n-th call that a fault can hit does not do what it should.

The calls are those of Python's os and fcntl that change files or take locks. Files that are opened with open() are
seen too: meanwhile they are those of Python's own implementation in Python, which goes through os. What C libraries
do by themselves (a database, git) is not: strace finds that. One process only; what is armed before a fork is armed
in the child.
"""

from __future__ import annotations

import _io
import builtins
import errno
import fcntl
import importlib
import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

SPACE = ("open", "write", "pwrite", "rename", "replace", "link", "symlink", "mkdir", "mkfifo", "fsync", "fdatasync",
         "ftruncate", "truncate", "sendfile", "copy_file_range")  # fmt: skip
REMOVING = ("unlink", "remove", "rmdir", "chmod", "fchmod", "utime")
LOCKING = ("flock", "lockf", "fcntl")
ALL = (*SPACE, *REMOVING, *LOCKING, "close")
LOOKING = ("listdir", "scandir", "pipe", "dup", "dup2")
"""Calls that change no file, and need a descriptor."""

_HIT: dict[str, tuple[str, ...]] = {
    "kill": ALL,
    "short": ("write", "pwrite"),
    "ENOSPC": SPACE,
    "EDQUOT": SPACE,
    "EROFS": tuple(name for name in (*SPACE, *REMOVING) if name not in ("fsync", "fdatasync")),
    "EMFILE": ("open", "fcntl", *LOOKING),
    "EINTR": ("open", "write", "pwrite", "flock", "lockf", "fcntl", "fsync", "fdatasync", "close"),
}
"""Which calls can answer so; any other error may come from each of them."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Fault(NamedTuple):
    """What happens at a system call: `kill` (the process is killed before it), `short` (half of the bytes are
    written), or an errno by its name (the call fails, undone). `lasting`: at every such call from there on."""

    name: str
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.name}, lasting" if self.lasting else self.name


KILL = Fault("kill")
SHORT = Fault("short")
ERRORS = tuple(
    Fault(name, lasting)
    for name in ("ENOSPC", "EIO", "EMFILE", "EDQUOT", "EROFS", "EINTR", "ENOMEM")
    for lasting in (False, True)
    if (name, lasting) != ("EINTR", True)  # a signal that comes before every call would stop anybody
)
"""Every error that a state file has to survive, once and lasting."""


class Injection:
    """What came of it: how many calls the fault could have hit, how many it did, and the name of the first of those
    ("" while there was none)."""

    def __init__(self) -> None:
        self.calls = 0
        self.hits = 0
        self.first = ""


@contextmanager
def injected(fault: Fault, at: int, *, after: bool = False) -> Iterator[Injection]:
    """Inside, the `at`-th call (from 1) that this fault can hit is hit by it; with `after`, a kill comes after it.

    `at` 0 hits nothing and counts."""
    told = Injection()
    places = _places(_HIT.get(fault.name, ALL))
    originals = [(module, name, getattr(module, name)) for module, name in places]
    opens: list[tuple[Any, str, Any]] = [(module, "open", module.open) for module in (builtins, io, _io)]
    try:
        for module, name, original in originals:
            setattr(module, name, _wrapped(name, original, _struck(fault, at, after, told)))
        for module, name, _ in opens:
            setattr(module, name, _in_python.open)
        yield told
    finally:
        for module, name, original in [*opens, *originals]:
            setattr(module, name, original)


_in_python = importlib.import_module("_pyio")
"""The standard library's io once more, in Python."""
Strike = Callable[[str, Callable[[], Any], tuple[Any, ...]], Any]


def _places(names: Sequence[str]) -> list[tuple[ModuleType, str]]:
    modules = [(fcntl if name in LOCKING else os, name) for name in names]
    return [(module, name) for module, name in modules if hasattr(module, name)]


def _wrapped(name: str, original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return strike(name, lambda *other: original(*(other or args), **options), args)

    return call


def _struck(fault: Fault, at: int, after: bool, told: Injection) -> Strike:
    """The answer to each call."""

    def strike(name: str, go_on: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if not _can_hit(fault, name, args):
            return go_on()
        told.calls += 1
        if not at or (told.calls != at and not (fault.lasting and told.calls > at)):
            return go_on()
        told.hits, told.first = told.hits + 1, told.first or name
        return _hit(fault, name, after, go_on, args)

    return strike


def _can_hit(fault: Fault, name: str, args: tuple[Any, ...]) -> bool:
    if name == "open" and fault.name in ("ENOSPC", "EDQUOT", "EROFS"):
        return bool(args[1] & (os.O_CREAT if fault.name != "EROFS" else _WRITING))
    if name == "fcntl" and fault.name == "EMFILE":
        return bool(args[1] in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC))
    if name in ("write", "pwrite") and fault.name == "short":
        return len(args[1]) > 1
    return True


def _hit(fault: Fault, name: str, after: bool, go_on: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if fault.name == "kill":
        if after:
            go_on()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.name == "short":
        return go_on(args[0], args[1][: len(args[1]) // 2], *args[2:])
    number = getattr(errno, fault.name)
    if name == "close":
        go_on()  # whatever it answers, the descriptor is closed
    named = next((one for one in args if isinstance(one, (str, os.PathLike))), None)
    raise OSError(number, os.strerror(number), *([] if named is None else [os.fspath(named)]))
