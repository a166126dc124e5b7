"""A program's output: kept within bounds on disk and in memory, cut into lines, and made safe to show."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from necrocode import clock

CHUNK = 1 << 16
"""Bytes read at once."""

OnLine = Callable[[str, bytes], object]
"""Called with "stdout" or "stderr" and a line; True says that this line is the program's result."""


class Log:
    """One stream, appended to a file as raw bytes, `budget` of them at most: beyond that the first half and the
    newest rest are kept, around a line that says how much was left out.

    Everything up to the budget is in the file at once. What goes wrong with the file is told in `error`, once,
    and never raised."""

    def __init__(self, path: Path, budget: int) -> None:
        self.seen = 0
        self.error = ""
        self._head, self._budget = budget // 2, budget
        self._written = 0
        self._tail = bytearray()
        self._fd: int | None = None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
            self._start = os.fstat(self._fd).st_size
        except OSError as error:
            self.error = f"{path}: {error.strerror}"

    @property
    def truncated(self) -> bool:
        return self.seen > self._budget

    def feed(self, data: bytes) -> None:
        self.seen += len(data)
        if self.error:
            return
        room = self._budget - self._written
        if room > 0:
            self._write(data[:room])
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._budget:
            del self._tail[: -self._budget]

    def close(self) -> None:
        """Put the newest part in its place and close the file."""
        if self._fd is None:
            return
        try:
            if self.truncated and not self.error:
                self._finish(self._fd)
        except OSError as error:
            self._failed(error)
        finally:
            os.close(self._fd)
            self._fd = None

    def _finish(self, fd: int) -> None:
        newest = self._budget - self._head
        tail = os.pread(fd, newest, self._start + self._head) + self._tail
        os.ftruncate(fd, self._start + self._head)
        left_out = self.seen - self._head - newest
        self._all(f"\n[necrocode: {left_out} bytes left out]\n".encode() + tail[-newest:])

    def _write(self, data: bytes) -> None:
        try:
            self._all(data)
        except OSError as error:
            self._failed(error)

    def _all(self, data: bytes) -> None:
        at = 0
        while self._fd is not None and at < len(data):
            done = os.write(self._fd, data[at:])
            at += done
            self._written += done

    def _failed(self, error: OSError) -> None:
        self.error = self.error or f"the log could not be written: {error.strerror}"


class Lines:
    """Cuts one stream into lines, without their newline, of `longest` bytes at most; what is beyond is dropped."""

    def __init__(self, tell: Callable[[bytes], None], longest: int) -> None:
        self._tell, self._longest = tell, longest
        self._part = bytearray()

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._keep(line)
            self._flush()
        self._keep(rest)

    def close(self) -> None:
        """Tell the last line, if it had no newline."""
        if self._part:
            self._flush()

    def _keep(self, piece: bytes) -> None:
        self._part += piece[: self._longest - len(self._part)]

    def _flush(self) -> None:
        line = bytes(self._part)
        self._part.clear()
        self._tell(line)


class Streams:
    """The pipes of one program's output, its logs, and who hears its lines."""

    def __init__(self, stdout: Path, stderr: Path, log_bytes: int, line_bytes: int, on_line: OnLine | None) -> None:
        self.result_at: float | None = None
        self.heard_at = clock.monotonic()
        self.theirs: list[int] = []
        self.logs: dict[str, Log] = {}
        self.ours: dict[int, tuple[Log, Lines | None]] = {}
        self._paths = (("stdout", stdout), ("stderr", stderr))[: 1 if stdout == stderr else 2]
        self._log_bytes, self._line_bytes, self._on_line = log_bytes, line_bytes, on_line

    def __enter__(self) -> Streams:
        try:
            for name, path in self._paths:
                read, write = os.pipe()
                self.theirs.append(write)
                self.logs[name] = Log(path, self._log_bytes)
                self.ours[read] = (self.logs[name], self._lines(name, self._on_line, self._line_bytes))
                os.set_blocking(read, False)
        except OSError:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self, name: str, on_line: OnLine | None, longest: int) -> Lines | None:
        if on_line is None:
            return None
        tell = on_line

        def told(line: bytes) -> None:
            if tell(name, line) is True and self.result_at is None:
                self.result_at = clock.monotonic()

        return Lines(told, longest)

    def started(self) -> None:
        """Our copies of the program's ends are not needed any more."""
        while self.theirs:
            os.close(self.theirs.pop())
        self.heard_at = clock.monotonic()

    def take(self, fd: int) -> bool:
        """Take in what one read gives; False when nothing more is there now or will ever be."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        log, lines = self.ours[fd]
        if not data:
            self._finish(fd)
            return False
        self.heard_at = clock.monotonic()
        log.feed(data)
        if lines:
            lines.feed(data)
        return True

    def drain(self) -> None:
        """Take what is still in the pipes; bounded, since a stranger may hold one and go on writing."""
        for fd in list(self.ours):
            for _ in range(2 * (1 << 20) // CHUNK):
                if not self.take(fd):
                    break
            if fd in self.ours:
                self._finish(fd)

    def _finish(self, fd: int) -> None:
        _, lines = self.ours.pop(fd)
        os.close(fd)
        if lines:
            lines.close()

    def close(self) -> None:
        while self.theirs:
            os.close(self.theirs.pop())
        while self.ours:
            os.close(self.ours.popitem()[0])
        for log in self.logs.values():
            log.close()


_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])(?:[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c))?"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"  # all other escapes
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def sanitised(output: bytes) -> str:
    """The output as text for people: UTF-8 with replacements, no escape sequences, no control characters but
    newline and tab (carriage returns become newlines), none that turn the direction of writing."""
    text = output.decode("utf-8", "replace")
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", text)
