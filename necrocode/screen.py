"""Words and tables for people: aligned, cut to the width of the terminal, free of control characters."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}


def clean(text: str) -> str:
    """The text without characters that would move a cursor, ring, recolour or turn the direction of writing."""
    return _CONTROLS.sub("?", text)
