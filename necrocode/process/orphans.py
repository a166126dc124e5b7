"""Orphans: while a program runs, whatever loses its parent below this process becomes this process's child.

So nothing can leave a tree by forking twice, "no children" proves that no tree is left, and what ended is reaped
also where there is no init. A program that waits for just any child of its own (`os.wait()`) would meet strangers.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from necrocode.process.tree import leaders

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_lock = threading.Lock()
_adopters = 0
_before = 0


@contextmanager
def adopting() -> Iterator[bool]:
    """While any program runs, what it leaves behind becomes this process's child, not init's; whether it does."""
    global _adopters, _before
    with _lock:
        if _adopters == 0:
            _before = _subreaper()
            if not _before:
                _set_subreaper(1)
        _adopters += 1
        below = _subreaper() == 1
    try:
        yield below
    finally:
        with _lock:
            _adopters -= 1
            if _adopters == 0 and not _before:
                _set_subreaper(0)


@cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def _subreaper() -> int:
    if sys.platform != "linux":
        return 0
    import ctypes

    value = ctypes.c_int(0)
    _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return value.value


def _set_subreaper(value: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, value, 0, 0, 0)


def _forked() -> None:
    """A forked child carries no programs; the attribute is not inherited, and the lock may have been held."""
    global _lock, _adopters
    _lock, _adopters = threading.Lock(), 0
    leaders.clear()


os.register_at_fork(after_in_child=_forked)
