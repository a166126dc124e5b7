"""For those who embed necrocode, or keep state files of their own, and for necrocode's own tests.

`check` asserts the protocol's invariants over a state directory. `everywhere` ends one operation at each of its
system calls in turn, by kill -9 or by an error, and asks afterwards whether all is well. `storm` lets many processes
work at once while others are killed. `injected` and `forked` are what those two are made of. Everything that forks
needs a process without threads.
"""

from necrocode.testing.checker import Broken, check, wait_for
from necrocode.testing.children import Died, forked, is_alive, result_of
from necrocode.testing.everywhere import Report, everywhere
from necrocode.testing.faults import ERRORS, KILL, SHORT, Fault, Injection, injected
from necrocode.testing.storm import storm

__all__ = [
    "ERRORS",
    "KILL",
    "SHORT",
    "Broken",
    "Died",
    "Fault",
    "Injection",
    "Report",
    "check",
    "everywhere",
    "forked",
    "injected",
    "is_alive",
    "result_of",
    "storm",
    "wait_for",
]
