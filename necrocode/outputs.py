"""The logs of an attempt, in the order in which they were written, whole or as they grow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from necrocode.process import sanitised

_NAME = re.compile(r"(?:(?P<phase>setup|step|verify)-(?P<number>\d+)\.)?(?P<stream>stdout|stderr)\.log")
_PHASES = ("setup", "", "step", "verify")
_CHUNK = 1 << 16
_LOOK = 0.1


class Piece(NamedTuple):
    """Some bytes of one log, by its name; they end with a line, unless it is too long or was never finished."""

    log: str
    data: bytes

    def text(self) -> str:
        """For people: no escape sequences, nothing that could move a cursor."""
        return sanitised(self.data)


def logs(folder: Path, *, stderr_only: bool = False) -> list[Path]:
    """The logs in an attempt's folder: setting up, the work or its steps, the checks; stdout before stderr."""
    found = [(match, folder / name) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    chosen = [(match, path) for match, path in found if match["stream"] == "stderr" or not stderr_only]
    return [path for _, path in sorted(chosen, key=lambda one: _place(one[0]))]


def _place(match: re.Match[str]) -> tuple[int, int, bool]:
    return _PHASES.index(match["phase"] or ""), int(match["number"] or 0), match["stream"] == "stderr"


def whole(folder: Path, *, stderr_only: bool = False) -> Iterator[Piece]:
    """All that is there now, one log after another."""
    reader = _Reader(folder, stderr_only)
    yield from reader.new(to_the_end=True)


def growing(folder: Path, is_over: Callable[[], bool], *, stderr_only: bool = False) -> Iterator[Piece]:
    """All that is there and all that comes, line by line, until `is_over()`; nothing before that is missed."""
    reader = _Reader(folder, stderr_only)
    while True:
        last = is_over()
        yield from reader.new(to_the_end=last)
        if last:
            return
        time.sleep(_LOOK)


class _Reader:
    """Where in each log of one folder we are."""

    def __init__(self, folder: Path, stderr_only: bool) -> None:
        self._folder, self._stderr_only = folder, stderr_only
        self._at: dict[Path, int] = {}

    def new(self, *, to_the_end: bool) -> Iterator[Piece]:
        for path in logs(self._folder, stderr_only=self._stderr_only):
            yield from self._of(path, to_the_end)

    def _of(self, path: Path, to_the_end: bool) -> Iterator[Piece]:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            # A log beyond its bound is cut when it is closed, and goes on after what was left out.
            self._at[path] = min(self._at.get(path, 0), os.fstat(file.fileno()).st_size)
            file.seek(self._at[path])
            while data := file.read(_CHUNK):
                piece = data if to_the_end or len(data) == _CHUNK else data[: data.rfind(b"\n") + 1]
                # Never cut inside a line when there is a better place: an escape sequence may span the cut.
                if len(data) == _CHUNK and (end := data.rfind(b"\n") + 1):
                    piece = data[:end]
                if not piece:
                    return
                self._at[path] += len(piece)
                file.seek(self._at[path])
                yield Piece(path.name, piece)
