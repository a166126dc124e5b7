"""Obey a schedule on an event loop. Attempts are coroutines, functions in threads, or programs.

`Engine` carries out a schedule's orders; `Threads` runs functions that are not async; `Command` is a program whose
cancelling ends its whole tree. Everything here belongs to one loop.
"""

from __future__ import annotations

from necrocode.aio.command import Command, CommandFailed, Output
from necrocode.aio.engine import GRACE, Engine, Work
from necrocode.aio.subscriber import Subscriber, all_heard
from necrocode.aio.threads import Threads, is_async, to_the_end

__all__ = [
    "GRACE",
    "Command",
    "CommandFailed",
    "Engine",
    "Output",
    "Subscriber",
    "Threads",
    "Work",
    "all_heard",
    "is_async",
    "to_the_end",
]
