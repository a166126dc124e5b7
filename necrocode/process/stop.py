"""The wish that a program shall end."""

from __future__ import annotations

import os
from typing import Protocol


class Stoppable(Protocol):
    """What `stop` must have; threading.Event does. With a `fileno()` too, it wakes at once, else within 0.1 s."""

    def is_set(self) -> bool: ...


class Stop:
    """A wish to stop that wakes whoever waits for it. `set` may be called from any thread or signal handler."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._set = False

    def set(self) -> None:
        if not self._set:
            self._set = True
            os.write(self._write, b"!")

    def is_set(self) -> bool:
        return self._set

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
