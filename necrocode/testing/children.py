"""Children that play a part: forked, with their traceback in a file when they fail."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from necrocode.process import who

_FAILED = 9
"""The exit code of a child whose part raised."""


class Died(AssertionError):
    """A child did not end as it should have; the message is its traceback, or how it ended."""


def forked(play: Callable[[], Any], trouble: Path, *, hang: bool = False) -> int:
    """The pid of a child that plays and exits with what that returns (0 for None), or goes on living with `hang`.

    When `play` raises, its traceback is in the file `trouble`. Raises RuntimeError in a process with threads: a lock
    that one of them holds at the fork would stay shut in the child."""
    if threading.active_count() > 1:
        raise RuntimeError("fork from a process without threads (run it in one of its own)")
    child = os.fork()
    if child:
        return child
    code = _FAILED
    try:
        code = play() or 0
        while hang:
            time.sleep(1)
    finally:
        # A child must not return into its parent's code, whatever it raised.
        if sys.exc_info()[0] is not None:
            with suppress(OSError):
                trouble.write_text(traceback.format_exc())
        os._exit(code)


def is_alive(pid: int) -> bool:
    """Whether anything of that process is left; its main thread may be a zombie while others hold its files."""
    seen = who.stat(pid)
    return seen is not None and not seen.ended


def result_of(child: int, trouble: Path, *, within: float = 20.0, kills: bool = False) -> int | None:
    """The exit code of a child; None when it was killed, which only `kills` allows.

    Raises Died, with what it wrote to `trouble`, when it failed, died or did not end within so many seconds; it is
    killed then."""
    deadline = time.monotonic() + within
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Died(f"it did not end within {within:g} s")
        time.sleep(0.0003)
    code = os.waitstatus_to_exitcode(ended[1])
    if code == -signal.SIGKILL and kills:
        return None
    if code < 0 or code == _FAILED:
        raise Died(trouble.read_text() if trouble.exists() else f"it ended with {code}")
    return code
