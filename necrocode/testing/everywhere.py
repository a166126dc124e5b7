"""One operation, cut short at each of its system calls in turn: by kill -9, by an error, or by a short write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from necrocode.testing.children import Died, forked, result_of
from necrocode.testing.faults import ERRORS, KILL, SHORT, Fault, injected

_REACHED, _PAST = 3, 0
_ENOUGH = 4
"""Cases that went wrong, after which the rest would only say the same."""

_UNREADABLE = (OSError, ValueError, LookupError, TypeError)
"""What reading a damaged file raises, which is as good as an assertion."""

Play = Callable[[Path], object]


class Report(NamedTuple):
    """`cases` is how often the operation was cut short, `calls` how many system calls it makes (the most that any
    fault could hit), `wrong` what went wrong, one text a case: empty when all is well."""

    cases: int
    calls: int
    wrong: tuple[str, ...]


def nothing(place: Path) -> None:
    """What is played when nothing was given."""


def everywhere(
    act: Play,
    *,
    before: Play = nothing,
    after: Callable[[Path, bool], object] = lambda place, done: None,
    again: Play | None = None,
    faults: Sequence[Fault] = (KILL, SHORT, *ERRORS),
    raises: type[BaseException] | tuple[type[BaseException], ...] = OSError,
    folder: Path | None = None,
    most: int = 400,
) -> Report:
    """Cut `act` short by each fault at each system call that it can hit. One case is:

    a fresh directory, prepared by `before(place)`; a child that calls `act(place)` with the fault in its way; then
    `after(place, done)`, which raises AssertionError when what it finds is not right (`done`: act returned, so all
    of it must be there); then `again(place)` without any fault (default: act), in the same child if it lived, in
    another one if it was killed; and `after(place, True)`.

    An error that act raises must be one of `raises`. Directories are made in `folder` (default: the system's for
    temporary files) and removed. Raises RuntimeError for an act that makes more than `most` calls or never the same
    number. Only in a process without threads."""
    cases, calls, wrong = 0, 0, list[str]()
    case = _Case(act, before, after, again or act, raises)
    for fault in faults:
        last = 0
        while len(wrong) < _ENOUGH and _reached(case, fault, last + 1, folder, wrong):
            last += 1
            if last > most:
                raise RuntimeError(f"no end of system calls after {most}")
        cases, calls = cases + last, max(calls, last)
        if fault == KILL and last and len(wrong) < _ENOUGH:
            _reached(case, fault, -last, folder, wrong)  # after any other call is before the next
            cases += 1
    return Report(cases, calls, tuple(wrong))


def _reached(case: _Case, fault: Fault, at: int, folder: Path | None, wrong: list[str]) -> bool:
    try:
        return _in_folder(folder, partial(case.run, fault=fault, at=at))
    except AssertionError as error:
        wrong.append(f"{fault}, {'after' if at < 0 else 'at'} call {abs(at)}: {error}")
        return True


def _in_folder(folder: Path | None, play: Callable[[Path], bool]) -> bool:
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        return play(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


class _Case(NamedTuple):
    act: Play
    before: Play
    after: Callable[[Path, bool], object]
    again: Play
    raises: type[BaseException] | tuple[type[BaseException], ...]

    def run(self, root: Path, fault: Fault, at: int) -> bool:
        """Whether the act came to that call. Raises AssertionError when anything is not as it should be."""
        place, trouble = root / "place", root / "trouble"
        place.mkdir(mode=0o700)
        self.before(place)
        child = forked(partial(self._cut_short, place, fault, at), trouble)
        code = result_of(child, trouble, kills=fault == KILL)
        if code is None:
            self._checked(place, False)
            result_of(forked(partial(_played, self.again, place), trouble), trouble)
        self._checked(place, True)
        return code != _PAST

    def _cut_short(self, place: Path, fault: Fault, at: int) -> int:
        done = True
        with injected(fault, abs(at), after=at < 0) as told:
            try:
                self.act(place)
            except self.raises:
                if not told.hits:
                    raise
                done = False
        self._checked(place, done)
        if told.hits:
            self.again(place)
        return _REACHED if told.hits else _PAST

    def _checked(self, place: Path, done: bool) -> None:
        try:
            self.after(place, done)
        except _UNREADABLE as error:
            raise Died(f"what is there cannot be read: {error!r}") from error


def _played(play: Play, place: Path) -> None:
    play(place)
