"""The launcher of a run: one at a time, and everybody can see who. runs/<run>/launcher.json, locked for life."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from necrocode import process
from necrocode.errors import Refused
from necrocode.lease import Identity
from necrocode.runs import run_folder
from necrocode.statedir import UNSHARED, StateDir, flock, read, to_json, told

_MOMENT = 1.0
_LOOK = 0.1
"""Seconds, many times as long as anybody looks."""


@contextmanager
def alone(state: StateDir, run_id: str, **facts: Any) -> Iterator[None]:
    """Be the launcher of this run while the body runs, and let everybody read these facts of it. Raises Refused that
    names who already is, StateUnusable."""
    path = run_folder(state, run_id) / "launcher.json"
    with told(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | UNSHARED, state.file_mode)
    try:
        with told(path):
            _lock(descriptor, path, run_id)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, to_json({**process.identity()._asdict(), "since": time.time(), **facts}), 0)
        yield
    finally:
        with suppress(OSError):  # whatever it answers, the lock is gone; what the body raised is to be told
            os.close(descriptor)


def _lock(descriptor: int, path: Path, run_id: str) -> None:
    until = time.monotonic() + _LOOK
    while not _is_taken(descriptor, path):
        if time.monotonic() < until:  # somebody may only be looking whether the run is followed
            time.sleep(0.002)
            continue
        who = named(path)
        raise Refused(
            f"run {run_id} is followed already, by {f'pid {who.pid} on {who.host}' if who else 'another process'}",
            runner_id=run_id, reason="run",
            hint=f"`necrocode status` shows it; until it has ended: necrocode wait {run_id}",
        )  # fmt: skip


def _is_taken(descriptor: int, path: Path) -> bool:
    try:
        flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
    except BlockingIOError:
        return False
    return True


def named(path: Path) -> Identity | None:
    """Whom a launcher.json that is locked names, or else who has locked it; None when neither tells for a second.

    Between its lock and its name lies a moment in which nothing is there, or still the name of one that has ended."""
    until = time.monotonic() + _MOMENT
    while True:
        found = _said(path)
        if found and not process.is_gone(found):
            return found
        if (locker := process.locker(path)) or time.monotonic() > until:
            return locker or found
        time.sleep(0.005)


def _said(path: Path) -> Identity | None:
    try:
        return Identity.from_dict(json.loads(read(path)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
