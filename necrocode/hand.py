"""A hand: one runner process of a fleet, as its launcher holds it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from necrocode.clock import monotonic
from necrocode.lease import Identity
from necrocode.nursery import Nursery
from necrocode.process.who import identity, send

ENDS = ("done", "broken", "refused", "unusable")
"""The last words of a runner about an attempt."""


class Hand:
    """A runner process: folders of attempts go in, lines about them come out. It survives us.

    `idle`: it may be given an attempt. `gone`: it has said its last. `proven`: it has said anything at all of an
    attempt. `who` it is, once it has said that; `wanted` is when it was asked for, on the monotonic clock."""

    def __init__(self, nursery: Nursery) -> None:
        self._input, self.output = nursery.bear()
        self.wanted = monotonic()
        self._rest = b""
        self.who: Identity | None = None
        self._unsent: list[signal.Signals] = []
        self.idle = True
        self.gone = self.proven = False

    def carry(self, folder: Path) -> None:
        """Hand over an attempt. A runner that is no more is noticed when its output ends."""
        self.idle = False
        self._write(json.dumps(str(folder)).encode() + b"\n")

    def go_on(self) -> None:
        """Let an attempt begin its work that had to wait for strangers."""
        self._write(b"true\n")

    def _write(self, line: bytes) -> None:
        with suppress(BrokenPipeError):
            os.write(self._input, line)

    def heard(self) -> Iterator[dict[str, Any]]:
        """What it said since we last listened; `gone` is set when it will say no more."""
        data = os.read(self.output, 1 << 16)
        self.gone = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said["said"] == "born":
                self._born(said["pid"], said["ticks"])
                continue
            self.proven = True
            self.idle = said["said"] in ENDS and "leaving" not in said
            yield said

    def _born(self, pid: int, ticks: int) -> None:
        self.who = identity()._replace(pid=pid, start_ticks=ticks)
        while self._unsent:
            send(pid, ticks, self._unsent.pop(0))

    def stop(self) -> None:
        """Ask it to end what it carries, and then itself."""
        self.idle = False
        if self.who:
            send(self.who.pid, self.who.start_ticks, signal.SIGTERM)
        else:
            self._unsent.append(signal.SIGTERM)  # it has not told us yet who it is

    def dismiss(self) -> None:
        """No more attempts: an idle runner ends, a busy one ends after its attempt."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def close(self, patience: float = 0.0) -> None:
        """Dismiss it, and hear its last words for at most `patience` seconds, until it has ended."""
        self.dismiss()
        poll, until = select.poll(), monotonic() + patience
        poll.register(self.output, select.POLLIN)
        while not self.gone and poll.poll(max(0.0, until - monotonic()) * 1000):
            self.gone = not os.read(self.output, 1 << 16)
        os.close(self.output)
