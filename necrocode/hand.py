"""A hand: one runner process of a fleet, as its launcher holds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from necrocode.statedir import StateDir, told


class Hand:
    """A runner process: folders of attempts go in, lines about them come out. It survives us."""

    def __init__(self, state: StateDir, log: Path) -> None:
        with told(log), log.open("ab") as errors:
            argv = [sys.executable, "-m", "necrocode.runner", str(state.root)]
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, bufsize=0
            )
        self._rest = b""
        self.idle = True
        self.gone = False

    @property
    def output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def carry(self, folder: Path) -> None:
        """Hand over an attempt. A runner that is no more is noticed when its output ends."""
        assert self._process.stdin is not None
        self.idle = False
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{folder}\n".encode())

    def heard(self) -> Iterator[dict[str, Any]]:
        """What it said since we last listened; `gone` is set when it will say no more."""
        data = os.read(self.output, 1 << 16)
        self.gone = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.idle = said["said"] in ("done", "broken")
            yield said

    def stop(self) -> None:
        """Ask it to end what it carries, and then itself."""
        self.idle = False
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def dismiss(self) -> None:
        """No more attempts: an idle runner ends, a busy one ends after its attempt."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def close(self) -> None:
        """After its output has ended: let the system forget it."""
        self.dismiss()
        self._process.wait()
