"""The operations of `enumeration`, answered with every kind of trouble at every system call that it can come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import enumeration

from necrocode.testing import ERRORS, SHORT, Fault, injected

FAULTS = (SHORT, Fault("short", lasting=True), *ERRORS)
_ALWAYS = (Fault("EIO"), Fault("EIO", lasting=True), Fault("ENOSPC", lasting=True))
"""The first two can come from every call, the third is what happens to people."""


def chosen(name: str) -> tuple[Fault, ...]:
    """A part of FAULTS for each operation, so that operations beside each other see all of them; fewer where others
    wait, which takes longest."""
    at, others = list(enumeration.OPERATIONS).index(name), [fault for fault in FAULTS if fault not in _ALWAYS]
    slow = name in enumeration.WAITERS or "enqueue" in name or "wait" in name
    step = 6 if slow else 3
    return (*_ALWAYS[slow:], *others[at % step :: step])


@contextmanager
def troubled(at: int, fault: Fault) -> Iterator[Callable[[], bool]]:
    """In the way of a victim of `enumeration`; the value tells whether it was hit."""
    with injected(fault, at) as told:
        yield lambda: told.hits > 0


def everywhere(name: str, base: str, faults: tuple[Fault, ...] = FAULTS) -> enumeration.Report:
    """One operation of the ledger, with each fault at each call."""
    cut, past, wrong, slowest = 0, 0, list[str](), 0.0
    for fault in faults:
        report = enumeration._everywhere(name, base, [(troubled, fault)])
        cut, past, slowest = cut + report.cut, past + report.past, max(slowest, report.slowest)
        wrong += report.wrong
        if len(wrong) > 3:
            break
    return enumeration.Report(cut, past, wrong, slowest)
