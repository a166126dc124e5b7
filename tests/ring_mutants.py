"""Rings that are broken on purpose, in this process and all that it forks: each has to be seen by some test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from necrocode.ledger import ring
from necrocode.ledger.ring import Header, Ring


def _lose_entries() -> None:
    note, count = Ring.note, itertools.count()
    Ring.note = lambda self, place, here: None if next(count) % 3 == 2 else note(self, place, here)  # type: ignore[method-assign]


def _stand_still() -> None:
    write = Ring._write

    def stand_still(self: Ring, first: int, last: int, end: int) -> tuple[int, int, int]:
        return first, last, write(self, first, last, end)[2]

    Ring._write = stand_still  # type: ignore[method-assign]


def _miss_the_end() -> None:
    ring.CAPACITY = 150

    def all_there_is(self: Ring) -> dict[str, dict[str, bool]] | None:
        if self._seen is None or self._seen[0] != self._header.name:
            return None
        missed, news = self._header.last - self._seen[1], dict[str, dict[str, bool]]()
        lines = os.pread(self._descriptor, self._header.end - ring.START, ring.START).split(b"\n")[:-1]
        for line in lines[max(0, len(lines) - missed) :]:
            folder, _, name = line.split(b" ")[2].decode().partition("/")
            news.setdefault(folder, {})[name] = line.split(b" ")[1] == b"+"
        return news

    Ring.news = all_there_is  # type: ignore[method-assign]


def _believe_hands() -> None:
    Ring._times = lambda self: self._header.stamps  # type: ignore[method-assign]
    start = Ring.open

    def believing(self: Ring, descriptor: int, header: bytes, before: int) -> None:
        self._header = Header.parse(header) or Header(b"", 1, 0, ring.START, 0.0, (), 0)
        start(self, descriptor, header, before)

    Ring.open = believing  # type: ignore[method-assign]
    ring._EVERY = 1000.0


def _believe_the_dead() -> None:
    """Also whoever died between a move and the end of its pass."""
    _believe_hands()
    start = Ring.open

    def believing(self: Ring, descriptor: int, header: bytes, before: int) -> None:
        found = Header.parse(header)
        start(self, descriptor, header, found.through if found else 0)

    Ring.open = believing  # type: ignore[method-assign]


RING_MUTANTS: dict[str, Callable[[], None]] = {
    "the ring loses entries": _lose_entries,
    "the ring's counter stands still": _stand_still,
    "the ring's end unnoticed": _miss_the_end,
    "crashes unnoticed": _believe_the_dead,
    "hands unnoticed": _believe_hands,
}
