"""What happened, as JSON lines: appended by everybody, one file per UTC day, read back by time, task or run.

Metrics, never truth: a writer may be killed in the middle of a record or find the disk full, so appending never
raises and reading skips what is no event. Each record begins with a newline of its own, so that a torn one before
it stays alone.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from necrocode import clock
from necrocode.event import KINDS, Event
from necrocode.statedir import share

LONGEST = 1 << 20
"""Bytes; a longer line is no event, and is not held in memory to find out."""

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def make(
    kind: str, *, runner_id: str = "", task_id: str = "", spec_name: str = "", run_id: str = "", **facts: Any
) -> Event:
    """An event of this moment. Raises ValueError for a kind that the vocabulary does not have."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of event")
    return Event(kind, clock.wall(), clock.monotonic(), runner_id, task_id, spec_name, run_id, facts)


def append(events_dir: Path, events: Sequence[Event]) -> bool:
    """Write the events to the files of their days; False when not all of them could be written whole.

    The folder may be deleted at any time: it is made again, as long as the one that it lies in is there."""
    days: dict[str, list[str]] = {}
    for event in events:
        days.setdefault(_day(event.at), []).append(f"\n{_encode(event.to_dict())}")
    folder = str(events_dir)
    written = [_append(folder, day, "".join([*lines, "\n"]).encode()) for day, lines in days.items()]
    return all(written)


def _append(folder: str, day: str, data: bytes) -> bool:
    try:
        fd = _opened(folder, f"{folder}/{day}")
        try:
            # One write: the kernel places it whole at the end, however many processes append at once.
            return os.write(fd, data) == len(data)
        finally:
            os.close(fd)
    except OSError:
        return False  # also when it is only told at the close that the data did not come to the disk


def _opened(folder: str, path: str) -> int:
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        return _made(folder, path)


def _made(folder: str, path: str) -> int:
    """Open to the same people as the folder that `folder` lies in."""
    around = stat.S_IMODE(os.stat(os.path.dirname(folder)).st_mode)
    with suppress(FileExistsError):
        os.mkdir(folder, around)
        os.chmod(folder, around)
    mode = 0o660 if os.stat(folder).st_mode & stat.S_ISGID else 0o600
    fd = os.open(path, _FLAGS | os.O_CREAT, mode)
    with suppress(PermissionError):  # somebody else has just made it
        share(fd, mode)
    return fd


def read(events_dir: Path, since: float | None = None, **filters: Any) -> Iterator[Event]:
    """The events of all days, oldest file first, each file in the order of writing.

    `since` is in seconds since 1970; `filters` are fields of an event or facts of its kind, and must be equal."""
    first = "" if since is None else _day(since)
    for name in _days(events_dir):
        if name < first:
            continue
        for line in _lines(events_dir / name):
            event = _parsed(line)
            if event and (since is None or event.at >= since) and _fits(event, filters):
                yield event


def story(events_dir: Path, *, task_id: str = "", run_id: str = "", runner_id: str = "") -> list[Event]:
    """All that was told about one task, run or runner (about what fits all that are given), in order."""
    asked: dict[str, Any] = {"task_id": task_id, "run_id": run_id, "runner_id": runner_id}
    return list(read(events_dir, None, **{key: value for key, value in asked.items() if value}))


def recent(events_dir: Path, most: int = 1 << 18) -> list[Event]:
    """The last events, in order: those in the last `most` bytes of the newest files."""
    found: list[Event] = []
    for name in reversed(_days(events_dir)):
        size = _size(events_dir / name)
        start = max(0, size - most)
        # The first line may be the end of one, which is no event then.
        events = (_parsed(line) for line, _ in _whole_lines(events_dir / name, start))
        found = [event for event in events if event] + found
        most -= size - start
        if most <= 0:
            break
    return found


def follow(
    events_dir: Path, stop: Callable[[], bool], *, every: float = 0.25, since: float | None = None, **filters: Any
) -> Iterator[Event]:
    """The events appended from now on, looked for each `every` seconds, until `stop()` is true; with `since`
    (seconds since 1970) first those that are there from then on.

    "Now" is the first `next()`. What was appended before `stop` turned true is still given."""
    places = {name: _size(events_dir / name) for name in _days(events_dir) if since is None or name < _day(since)}
    while True:
        last = stop()
        for name in _days(events_dir):
            path = events_dir / name
            if _size(path) < places.get(name, 0):
                places[name] = 0  # replaced or cut short
            for line, end in _whole_lines(path, places.get(name, 0)):
                places[name] = end
                event = _parsed(line)
                if event and (since is None or event.at >= since) and _fits(event, filters):
                    yield event
        if last:
            return
        time.sleep(every)


def _day(at: float) -> str:
    return _file_of(int(at // 86_400))


@lru_cache(8)
def _file_of(day: int) -> str:
    return f"{clock.utc(day * 86_400):%Y-%m-%d}.jsonl"


def _days(events_dir: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(events_dir) if name.endswith(".jsonl"))
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _open(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:
        return None  # gone meanwhile, not ours to read, or no file at all


def _lines(path: Path) -> Iterator[bytes]:
    file = _open(path)
    if file:
        with file:
            yield from _bounded(file)


def _whole_lines(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """The finished lines from `start` on, each with the place after it; an unfinished last one waits."""
    file = _open(path)
    if file:
        with file:
            file.seek(start)
            for line in _bounded(file):
                if line.endswith(b"\n"):
                    yield line, file.tell()


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LONGEST):
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
            pass
        yield b"\n" if rest else b""


def _parsed(line: bytes) -> Event | None:
    if line.isspace() or not line:
        return None
    try:
        data = json.loads(line)
        return Event.from_dict(data) if isinstance(data, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _fits(event: Event, filters: dict[str, Any]) -> bool:
    return all(_fact(event, key) == value for key, value in filters.items())


def _fact(event: Event, key: str) -> object:
    return getattr(event, key) if key in Event._fields else event.facts.get(key)
