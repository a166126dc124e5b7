"""The runner: a process that carries attempts one after another, and survives whoever launched it.

`python -m necrocode.runner STATE_DIR` takes the folder of an attempt from each line of its input (a JSON string)
and says on its output what happens to it. When its launcher dies it finishes the attempt under way, and ends.
An attempt that had to wait for strangers begins its work when the launcher says `true`: others may work meanwhile.
SIGTERM ends the attempt under way and then the runner.
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
from necrocode.errors import LeaseLost, NecrocodeError, StateUnusable
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, take, write_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import read_json


class _Interrupted(BaseException):
    """Raised into a wait by SIGTERM."""


class Process:
    """One runner process: attempt folders come in as lines, what happens to them goes out as JSON lines."""

    def __init__(self, state_dir: str, output: int) -> None:
        self._ledger = FileLedger(state_dir)
        self._output = output
        self._stop: process.Stop | None = None
        self._waiting = self._leaving = False

    def serve(self, lines: Iterator[str]) -> None:
        self._lines = lines
        signal.signal(signal.SIGTERM, self._on_term)
        # The terminal's Ctrl-C is the launcher's business. Not SIG_IGN, which every agent would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        for line in lines:
            self._serve_one(Path(json.loads(line)))
            if self._leaving:
                return

    def _serve_one(self, folder: Path) -> None:
        self._stop = process.Stop()
        try:
            what, facts = self._carry(folder, self._stop)
        finally:
            stop, self._stop, self._waiting = self._stop, None, False
            stop.close()
        self._say(folder, what, **facts, **({"leaving": "yes"} if self._leaving else {}))

    def _carry(self, folder: Path, stop: process.Stop) -> tuple[str, dict[str, str]]:
        """The last thing to say about an attempt. Only when that is "done" its result is on the disk."""
        try:
            if not take(folder):
                return "refused", {"error": "somebody else has taken this attempt"}
            order = Order.from_dict(read_json(folder / "task.json"))
            try:
                outcome = carry(
                    order._replace(alone=True), self._ledger, stop=stop, told=partial(self._on_phase, folder)
                )
            except _Interrupted:
                outcome = self._interrupted(order)
            write_result(folder, outcome)
            return "done", {"status": str(outcome.status)}
        except StateUnusable as error:
            return "unusable", {"path": error.path, "reason": error.reason, "hint": error.hint}
        except (NecrocodeError, KeyError, TypeError, OSError) as error:
            return "broken", {"error": str(error) if isinstance(error, NecrocodeError) else repr(error)}

    def _interrupted(self, order: Order) -> Outcome:
        self._waiting = False
        if lease := self._ledger.find(order.runner_id):  # the grant came at the same moment
            with suppress(LeaseLost):
                self._ledger.release(lease)
        told = ("stopped while waiting", "stopped")
        return Outcome(order.task.id, Status.CANCELLED, order.attempt, *told, runner_id=order.runner_id)

    def _on_phase(self, folder: Path, phase: str, detail: str = "") -> None:
        self._say(folder, phase, **({"detail": detail} if detail else {}))
        has_waited, self._waiting = self._waiting, phase == "waiting"
        if phase == "granted" and has_waited:
            self._waiting = True
        if self._waiting and self._leaving:
            raise _Interrupted
        if phase == "granted" and has_waited:
            next(self._lines, "")  # or the end of them: without a launcher there is nobody to wait for
            self._waiting = False

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True
        if self._stop is None:
            os._exit(0)  # nothing is under way; what may have been handed over just now, another will carry
        self._stop.set()
        if self._waiting:
            self._waiting = False
            raise _Interrupted

    def _say(self, folder: Path, what: str, **facts: str) -> None:
        # Whoever launched us may be gone; the result is on the disk all the same.
        line = json.dumps({"folder": str(folder), "said": what, **facts}).encode() + b"\n"
        with suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._output, line) :]


def main() -> None:
    # Nothing else that is printed here may get between the lines for the launcher.
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        Process(sys.argv[1], output).serve(iter(sys.stdin.readline, ""))
    except StateUnusable as error:
        sys.exit(f"necrocode: {error}")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
