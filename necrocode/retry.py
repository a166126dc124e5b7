"""How long until the next attempt, and when to stop asking for a while: back-off and circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Literal, NamedTuple

from necrocode.errors import ConfigError

POISON_LIMIT = 3
"""How often the process of a task may die until the task counts as failed: it may be what kills them."""


class Policy(NamedTuple):
    """How often to try again, and after how long: `base * factor**n` seconds, never more than `cap`.

    `retries` are attempts after the first; `jitter` (0 to 1) is the share of a delay that chance may take off."""

    retries: int = 0
    base: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.0

    def delay(self, attempt: int, random: Callable[[], float] | None = None) -> float:
        """Seconds before the retry number `attempt`, the first being 0. `random` gives numbers from 0 to 1."""
        seconds = min(self._grown(max(0, attempt)), self.cap)
        if not self.jitter:
            return seconds
        return seconds * (1.0 - self.jitter * (random or _random())())

    def _grown(self, attempt: int) -> float:
        if not self.base:
            return 0.0
        try:
            return self.base * float(self.factor) ** attempt
        except OverflowError:  # beyond any float is beyond any cap
            return self.cap

    def checked(self) -> Policy:
        """This policy, or ConfigError for numbers that cannot be meant."""
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"retries {self.retries!r} is not possible", hint="give a whole number from 0")
        for name in ("base", "factor", "cap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isfinite(value) or value < 0:
                raise ConfigError(f"{name} {value!r} is not possible", hint="give a number from 0")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"jitter {self.jitter!r} is not possible", hint="give a share from 0 to 1")
        return self


def _random() -> Callable[[], float]:
    from random import random

    return random


class CircuitBreaker:
    """Says whether another attempt makes sense: after `threshold` failures in a row it is open for `recovery` seconds,
    then half open: it lets one probe through, which closes or opens it again.

    A probe of which nothing is heard for `recovery` seconds is given up, and the next one allowed."""

    def __init__(self, threshold: int = 5, recovery: float = 30.0) -> None:
        if threshold < 1 or not recovery >= 0:
            raise ConfigError(
                f"a breaker with threshold {threshold!r} and recovery {recovery!r} is not possible",
                hint="give a threshold from 1 and a recovery time in seconds from 0",
            )
        self.threshold, self.recovery = threshold, recovery
        self.failures = 0
        self._shut_until: float | None = None

    def state(self, now: float) -> Literal["closed", "open", "half-open"]:
        if self._shut_until is None:
            return "closed"
        return "open" if now < self._shut_until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether to start an attempt now; a yes while half open is the probe."""
        state = self.state(now)
        if state == "half-open":
            self._shut_until = now + self.recovery
        return state != "open"

    def succeeded(self) -> None:
        self.failures, self._shut_until = 0, None

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.failures >= self.threshold:
            self._shut_until = now + self.recovery
