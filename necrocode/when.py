"""Moments and durations as a person writes them on a command line."""

from __future__ import annotations

import re
import time
from datetime import datetime

from necrocode.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str) -> float:
    """90s, 10m, 12h, 30d or 2w, in seconds. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not found:
        raise ConfigError(f"{text!r} is no duration", hint="write for example 90s, 10m, 12h or 30d")
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> float:
    """Seconds since 1970 of a moment: so long ago (10m), a time of today (14:30), or a date with or without a time
    (2026-11-21T14:30, local unless it says otherwise). Raises ConfigError."""
    if re.fullmatch(r"\d+(?:\.\d+)?\s*[smhdw]", text.strip()):
        return time.time() - seconds(text)
    today = f"{datetime.now():%Y-%m-%d}T{text.strip()}" if re.fullmatch(r"\s*\d\d:\d\d(:\d\d)?\s*", text) else text
    try:
        return datetime.fromisoformat(today.strip()).timestamp()
    except ValueError:
        hint = "write for example 10m (ago), 14:30 or 2026-11-21T14:30"
        raise ConfigError(f"{text!r} is no moment", hint=hint) from None
