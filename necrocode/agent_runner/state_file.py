"""A runner's state as a file: written whole, read back by whoever takes over."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from necrocode.agent_runner.models import RunnerStateSnapshot
from necrocode.errors import StateUnreadable
from necrocode.statedir import default_root, put, read_json


class StateFile:
    """`path`, or `<coordination directory>/runs/<runner id>/state.json`."""

    def __init__(self, path: Path | None, root: Path | None, runner_id: str) -> None:
        self._is_ours = path is None
        self.path = path.expanduser() if path else (root or default_root()) / "runs" / runner_id / "state.json"

    def save(self, snapshot: RunnerStateSnapshot) -> None:
        """Raises OSError; the old state stays then."""
        # Below the coordination directory only what it made itself: a directory that it refused stays untouched.
        self.path.parent.mkdir(parents=not self._is_ours, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.{os.urandom(3).hex()}")
        try:
            put(draft, snapshot.to_json().encode() + b"\n")
            os.replace(draft, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise

    def load(self) -> RunnerStateSnapshot | None:
        """None when there is no file. Raises StateUnreadable for one that is no state."""
        try:
            return RunnerStateSnapshot.from_dict(read_json(self.path))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise StateUnreadable(str(self.path), f"is no runner's state ({error})") from error

    def clear(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
