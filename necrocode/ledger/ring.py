"""The ring: the recent changes of the records, in the gate's file, so that whoever comes in need not list the folders.

The listings stay the truth. The ring is believed only while the pass before this one ended in peace and wrote into it,
and the folders have not been touched since: a death inside the gate, a version that knows no ring, a record that was
placed or removed by hand, each lets everybody list anew. And once a second somebody compares it with the listings.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

FOLDERS = ("runners", "fenced", "queue")
START = 352
"""Where the lines begin in the gate's file; what stands before them belongs to the gate, and to the header."""
WIDTH = 192
"""Bytes of the header, which ends where the lines begin."""
CAPACITY = 1 << 14
"""Bytes of lines. When they are full the older half goes, and whoever has not read it lists the folders."""
_EVERY = 1.0
"""Seconds after which the ring is compared with the listings: somebody may have changed a folder by hand in the very
moment in which a pass changed it too."""
_BEFORE = 20_000_000
"""Nanoseconds; a kernel's clock for files ticks every 10 ms at least."""


class Header(NamedTuple):
    """What stands before the lines: the ring's name, the numbers of its first and last line, where that ends, when it
    was compared with the listings (seconds on the boot's clock), when each folder was changed last (ns since 1970),
    and the pass that wrote all this."""

    name: bytes
    first: int
    last: int
    end: int
    listed: float
    stamps: tuple[int, ...]
    through: int

    def __bytes__(self) -> bytes:
        stamps = b" ".join([b"%d" % stamp for stamp in self.stamps])
        text = b"ring %b lines %d to %d end %d listed %.3f folders %b through %d" % (
            self.name, self.first, self.last, self.end, self.listed, stamps, self.through,
        )  # fmt: skip
        return text.ljust(WIDTH - 1)[: WIDTH - 1] + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> Header | None:
        """None for what is no header: a fresh file, one of an older version, a damaged one."""
        words = text.split()
        if len(words) != 16 or words[0] != b"ring":
            return None
        try:
            stamps = (int(words[11]), int(words[12]), int(words[13]))
            first, last, end = int(words[3]), int(words[5]), int(words[7])
            found = cls(words[1], first, last, end, float(words[9]), stamps, int(words[15]))
        except ValueError:
            return None
        return found if 0 < first <= last + 1 and START <= end <= START + CAPACITY else None


class Ring:
    """One process's reading and writing of it. Only used inside the gate."""

    def __init__(self, root: str) -> None:
        self._paths = {folder: f"{root}/{folder}" for folder in FOLDERS}
        self._seen: tuple[bytes, int] | None = None
        self._header = Header(b"", 1, 0, START, 0.0, (), 0)
        self._left: bytes | None = None
        self._descriptor = -1

    def open(self, descriptor: int, header: bytes, before: int) -> None:
        """At the start of a pass: take up what the pass `before` (0: none of this boot) left, if it wrote a ring."""
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._changed: set[str] = set()
        self._doubted = self._fresh = False
        found = self._header if header == self._left else Header.parse(header)
        if found and before and found.through == before and found.stamps == self._times():
            self._header = found
        else:
            self.begin()

    def _times(self) -> tuple[int, ...]:
        return tuple([os.stat(path).st_mtime_ns for path in self._paths.values()])

    def begin(self) -> None:
        """A new ring: nobody's view can be believed any more. Before the folders are listed, so that what happens to
        them from now on is noticed."""
        stamps = tuple(map(_stamp, self._paths.values()))
        name = os.urandom(4).hex().encode()
        self._header = Header(name, 1, 0, START, time.monotonic(), stamps, 0)
        self._seen, self._fresh = None, True
        self._lines.clear()
        self._changed.clear()

    @property
    def is_new(self) -> bool:
        """Whether this pass began a new one: something had happened that no ring told of."""
        return self._fresh

    def shut(self) -> None:
        """The file under our descriptor is not ours any more."""
        self._descriptor = -1

    def forget(self) -> None:
        """Our view is worth nothing: the next one is made from the listings."""
        self._seen = None

    def news(self) -> dict[str, dict[str, bool]] | None:
        """What has changed since our last pass: folder, name, and whether it is there now. None when that is not
        known, and the folders have to be listed."""
        name, first, last, end = self._header[:4]
        if self._seen is None or self._seen[0] != name or not first - 1 <= self._seen[1] <= last:
            return None
        at, news = self._seen[1], dict[str, dict[str, bool]]()
        if at == last:
            return news
        for line in os.pread(self._descriptor, end - START, START).split(b"\n")[at - last - 1 : -1]:
            at += 1
            words = line.split(b" ")
            if len(words) != 3 or words[0] != b"%d" % at or words[1] not in (b"+", b"-"):
                return None
            folder, _, file_name = words[2].decode(errors="replace").partition("/")
            news.setdefault(folder, {})[file_name] = words[1] == b"+"
        return news if at == last else None

    def is_due(self) -> bool:
        """Whether it is time to compare the ring with the listings."""
        return not 0 <= time.monotonic() - self._header.listed < _EVERY

    def compared(self) -> None:
        """The listings say the same."""
        self._header = self._header._replace(listed=time.monotonic())

    def note(self, place: str, here: bool) -> None:
        """`<folder>/<name>` has been placed or removed by this pass."""
        if not place.isascii() or not place.isprintable() or " " in place:
            return self.doubt()  # no name of ours
        number = self._header.last + len(self._lines) + 1
        self._lines.append(b"%d %b %b\n" % (number, b"+" if here else b"-", place.encode()))
        self._changed.add(place.partition("/")[0])
        return None

    def doubt(self) -> None:
        """Something was changed that could not be noted: everybody has to list."""
        self._doubted = True

    def close(self, generation: int) -> bytes:
        """At the end of a pass: write its lines, and return the header that makes them count."""
        name, first, last, end, listed, stamps, _ = self._header
        self._seen = self._left = None
        with suppress(OSError):  # a full disk keeps nobody from releasing
            if (self._lines or self._fresh) and not self._doubted:
                first, last, end = self._write(first, last, end)
            if self._changed:
                places = zip(self._paths.items(), stamps, strict=True)
                stamps = tuple([_stamp(path) if folder in self._changed else at for (folder, path), at in places])
            through = 0 if self._doubted else generation
            self._header = Header(name, first, last, end, listed, stamps, through)
            self._seen, self._left = (name, last), bytes(self._header)
        return self._left or b" " * (WIDTH - 1) + b"\n"

    def _write(self, first: int, last: int, end: int) -> tuple[int, int, int]:
        """Append the lines of this pass; the numbers of the first and last line that are there then, and their end."""
        text, start = b"".join(self._lines), end
        if end + len(text) > START + CAPACITY:
            text, start = os.pread(self._descriptor, end - START, START) + text, START
            text = text[text.index(b"\n", len(text) - CAPACITY // 2) + 1 :]
            first = last + len(self._lines) - text.count(b"\n") + 1
            self._fresh = True
        if os.pwrite(self._descriptor, text, start) != len(text):
            raise OSError
        if self._fresh:
            os.ftruncate(self._descriptor, start + len(text))
        return first, last + len(self._lines), start + len(text)


def _stamp(path: str) -> int:
    """Set when this folder was changed last, such that whoever changes it next is sure to leave another time.

    To the kernel, all that happens within some ms may be of one time: the one set here is before them. A file system
    of coarser times keeps another, and 0 is of a folder whose time we may not set (somebody else's, shared by a
    group): then it is not found again, and the next pass lists."""
    at = (time.time_ns() - _BEFORE) // 100 * 100
    try:
        os.utime(path, ns=(at, at))
    except PermissionError:
        return 0
    return at
