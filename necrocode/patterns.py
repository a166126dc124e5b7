"""Path patterns as text: their one spelling, and whether two of them can name a common path.

Patterns are `a/b` (exact), `a/**` (that path and everything below) and globs (`a/*.py`, `**/x`, with `*`, `?` and
`[...]`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from necrocode.errors import ConfigError

Segments = tuple[str, ...]

_ESCAPED = re.compile(r"\[[*?[]\]")
"""How a literal `*`, `?` or `[` is written."""

_SPECIAL = re.compile(r"[*?[]")


def normalised(path: str, *, literal: bool = False) -> str:
    """The one spelling of a relative posix path or pattern: no `.`, `..`, doubled or leading slash, NFC.

    A trailing slash becomes `/**` unless `literal`. Raises ConfigError for empty paths, NUL, and `..` that leaves
    the root."""
    if not path.isascii():
        import unicodedata

        path = unicodedata.normalize("NFC", path)
    if "\0" in path:
        raise ConfigError(f"{path!r} has a NUL character")
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if not kept:
                raise ConfigError(f"{path!r} leaves the directory it is relative to")
            kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    if not literal and path.endswith(("/", "/.")) and kept[-1:] != ["**"]:
        kept.append("**")
    if not kept and not literal:
        if path in (".", "./"):
            return "**"
        raise ConfigError(f"{path!r} names nothing")
    return "/".join(kept)


class Pattern(NamedTuple):
    """A path pattern taken apart: its leading literal segments, all of them, whether it has wildcards, and what every
    name that fits the first segment with wildcards begins with ("" when none has)."""

    anchor: Segments
    segments: Segments
    wild: bool
    start: str = ""

    def is_above(self, other: Pattern) -> bool:
        """Whether it is one literal path, and the other one cannot name anything but that and what lies below."""
        return not self.wild and other.anchor[: len(self.anchor)] == self.anchor


@lru_cache(65536)
def pattern(path: str) -> Pattern:
    segments = tuple(segment for segment in path.split("/") if segment)
    for depth, segment in enumerate(segments):
        if _is_wild(segment):
            start = _SPECIAL.split(segment, 1)[0]
            return Pattern(tuple(map(unescaped, segments[:depth])), segments, True, start)
    return Pattern(tuple(map(unescaped, segments)), segments, False)


@lru_cache(65536)
def overlap(ours: Segments, theirs: Segments) -> bool:
    """Whether some path matches both patterns. Sound: it may say yes for two character classes that exclude each
    other, never no for patterns that meet."""
    return _meet(ours, theirs, "**", _segments_meet)


@lru_cache(65536)
def _segments_meet(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    if not _is_wild(ours) and not _is_wild(theirs):
        return unescaped(ours) == unescaped(theirs)
    return any(
        _meet(one, other, "*", lambda a, b: a == b or "?" in (a, b))
        for one, other in itertools.product(_readings(ours), _readings(theirs))
    )


def _meet(ours: Segments, theirs: Segments, many: str, one: Callable[[str, str], bool]) -> bool:
    """Can two sequences, in which `many` stands for any number of items, be made equal?

    `reach[n]` says whether the items of `ours` seen so far can equal the first n of `theirs`."""
    reach = [True]
    for other in theirs:
        reach.append(reach[-1] and other == many)
    for item in ours:
        row = [reach[0] and item == many]
        for at, other in enumerate(theirs):
            if many in (item, other):
                row.append(reach[at + 1] or row[at])
            else:
                row.append(reach[at] and one(item, other))
        reach = row
    return reach[-1]


def _readings(segment: str) -> set[Segments]:
    """What the segment can mean: a pattern, and the name as it is written. Files are called `[id].tsx`, and before one
    of that name is there nobody can tell which is meant."""
    written = tuple(char if char in "*?" else f" {char}" for char in segment)
    return {_symbols(segment), *([written] if "[" in segment else [])}


def _is_wild(segment: str) -> bool:
    # A class of one character may be a pattern, or a name: see _readings.
    return _special(segment) and _special(_ESCAPED.sub("", segment))


def _special(segment: str) -> bool:
    return "*" in segment or "?" in segment or "[" in segment


@lru_cache(65536)
def _symbols(segment: str) -> Segments:
    """The segment as a sequence of literal characters (each with a leading space to tell them apart), `?` and `*`."""
    symbols: list[str] = []
    at = 0
    while at < len(segment):
        char = segment[at]
        if char == "[" and (end := segment.find("]", at + 2)) > 0:
            inside = segment[at + 1 : end]
            # `[x]` is how a literal `*`, `?` or `[` is written; any other class may match any character.
            symbols.append(f" {inside}" if len(inside) == 1 else "?")
            at = end
        else:
            symbols.append(char if char in "*?" else f" {char}")
        at += 1
    return tuple(symbols)


def escaped(path: str) -> str:
    """The pattern that names this very path."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


def unescaped(segment: str) -> str:
    """The name that a segment without wildcards means."""
    return "".join(symbol[-1] for symbol in _symbols(segment)) if _special(segment) else segment
