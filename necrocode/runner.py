"""The runner: a process that carries attempts one after another, and survives whoever launched it.

`python -m necrocode.runner STATE_DIR` takes the folder of an attempt from each line of its input and says on its
output what happens to it. When its launcher dies it finishes the attempt under way, and ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from necrocode import process
from necrocode.attempt import carry
from necrocode.errors import NecrocodeError, StateUnusable
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import read_json


class _Interrupted(BaseException):
    """Raised into a wait by SIGTERM."""


class Process:
    """One runner process: attempt folders come in as lines, what happens to them goes out as JSON lines."""

    def __init__(self, state_dir: str) -> None:
        self._ledger = FileLedger(state_dir)
        self._stop = process.Stop()
        self._waiting = False

    def serve(self, lines: Iterator[str]) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the launcher's business
        for line in lines:
            self._carry(Path(line.rstrip("\n")))
            if self._stop.is_set():
                return

    def _carry(self, folder: Path) -> None:
        try:
            order = Order.from_dict(read_json(folder / "task.json"))
            outcome = carry(order, self._ledger, stop=self._stop, told=partial(self._on_phase, folder))
        except _Interrupted:
            outcome = Outcome(
                order.task.id,
                Status.CANCELLED,
                order.attempt,
                "stopped while waiting",
                "stopped",
                runner_id=order.runner_id,
            )
        except (NecrocodeError, KeyError, TypeError) as error:
            return self._say(folder, "broken", error=str(error))
        write_result(folder, outcome)
        self._say(folder, "done", status=str(outcome.status))

    def _on_phase(self, folder: Path, phase: str, detail: str = "") -> None:
        self._waiting = phase == "waiting"
        self._say(folder, phase, **({"detail": detail} if detail else {}))

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()
        if self._waiting:
            raise _Interrupted

    def _say(self, folder: Path, what: str, **facts: str) -> None:
        # Whoever launched us may be gone; the result is on the disk all the same.
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps({"folder": str(folder), "said": what, **facts}) + "\n")
            sys.stdout.flush()


def main() -> None:
    try:
        Process(sys.argv[1]).serve(iter(sys.stdin.readline, ""))
    except StateUnusable as error:
        sys.exit(f"necrocode: {error}")
    finally:
        with suppress(BrokenPipeError, ValueError):
            sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
