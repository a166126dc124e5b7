"""The claim algebra: what can be claimed, when two claims conflict, and an index that answers in O(depth).

A claim names a path pattern within a kind. Patterns are `a/b` (exact), `a/**` (that path and everything below)
and globs (`a/*.py`, `**/x`, with `*`, `?` and `[...]`). Two claims conflict when they are of one kind, their
patterns can name a common path, and not both are shared. Everything here is text: what only the disk knows
(symbolic links, case, whether a path is a directory) is resolved before a claim is made.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from necrocode.errors import ConfigError

Segments = tuple[str, ...]

_ESCAPED = re.compile(r"\[[*?[]\]")
"""How a literal `*`, `?` or `[` is written."""


class Claim(NamedTuple):
    """One resource wanted or held: kind (`file:<repository>`, `branch:<repository>`, `workspace`, `port`, any name),
    a normalised path pattern without leading slash, and whether others may share it."""

    kind: str
    path: str
    shared: bool = False

    @classmethod
    def file(cls, path: str, repository: str = "", *, shared: bool = False) -> Claim:
        """A path or pattern relative to the repository's root; a trailing slash means the whole directory."""
        if path.startswith("/"):
            repository = "/"  # outside any repository: a place in the file system
        return cls(f"file:{repository}", normalised(path), shared)

    @classmethod
    def branch(cls, name: str, repository: str = "") -> Claim:
        """A branch; `a` and `a/b` conflict, since git cannot hold both."""
        return cls(f"branch:{repository}", f"{normalised(name.removeprefix('refs/heads/'))}/**")

    @classmethod
    def workspace(cls, path: str) -> Claim:
        """A directory that one runner works in; nested ones conflict. Give the real, absolute path."""
        return cls("workspace", f"{escaped(normalised(path, literal=True))}/**".lstrip("/"))

    @classmethod
    def parse(cls, text: str, repository: str = "") -> Claim:
        """`file:src/a.py`, `branch:fix`, `port:8080` or `gpu:0`; a leading `shared:` shares it.

        Raises ConfigError for text without kind or name."""
        shared = text.startswith("shared:")
        kind, colon, path = text.removeprefix("shared:").partition(":")
        if not colon or not kind or not path:
            raise ConfigError(
                f"{text!r} is not a claim", hint="write KIND:NAME, for example file:src/a.py, branch:fix or port:8080"
            )
        if kind == "file":
            return cls.file(path, repository, shared=shared)
        if kind == "branch":
            return cls.branch(path, repository)
        if kind == "workspace":
            return cls.workspace(path)
        return cls(kind, normalised(path), shared)

    @property
    def family(self) -> str:
        """The kind without the repository it belongs to: file, branch, workspace, port, ..."""
        return self.kind.partition(":")[0]

    @property
    def name(self) -> str:
        """The path as people write it: branches and workspaces without the `/**` they are stored with."""
        if self.family == "workspace":
            return "/" + _literal(self.path.removesuffix("/**"))
        return self.path.removesuffix("/**") if self.family == "branch" else self.path

    @property
    def sticky(self) -> bool:
        """Whether it stays held after its lease was fenced, until its holder is proven dead: a directory, or the
        branch checked out in it, cannot check a token."""
        return self.family in ("workspace", "branch")

    def __str__(self) -> str:
        return f"{'shared:' if self.shared else ''}{self.family}:{self.name}"


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


def conflict(ours: Claim, theirs: Claim) -> bool:
    """Whether both may not be held at once by different holders."""
    return (
        ours.kind == theirs.kind
        and not (ours.shared and theirs.shared)
        and overlap(pattern(ours.path).segments, pattern(theirs.path).segments)
    )


class Pattern(NamedTuple):
    """A path pattern taken apart: its leading literal segments, all of them, and whether it has wildcards."""

    anchor: Segments
    segments: Segments
    wild: bool


@lru_cache(65536)
def pattern(path: str) -> Pattern:
    segments = tuple(segment for segment in path.split("/") if segment)
    for depth, segment in enumerate(segments):
        if _is_wild(segment):
            return Pattern(_unescaped(segments[:depth]), segments, True)
    return Pattern(_unescaped(segments), segments, False)


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
        return _literal(ours) == _literal(theirs)
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


def _literal(segment: str) -> str:
    return "".join(symbol[-1] for symbol in _symbols(segment)) if _special(segment) else segment


def _unescaped(segments: Segments) -> Segments:
    return tuple(_literal(segment) for segment in segments)


class _Node:
    """One literal path in the index: claims anchored exactly here, and how many claims of each owner lie below."""

    __slots__ = ("below", "children", "exact", "wild")

    def __init__(self) -> None:
        self.exact: dict[tuple[str, Claim], int] = {}
        self.wild: dict[tuple[str, Claim], int] = {}
        self.below: dict[tuple[str, bool], int] = {}
        self.children: dict[str, _Node] = {}

    @property
    def empty(self) -> bool:
        return not (self.exact or self.wild or self.children)


def _count(counts: dict[Any, int], key: object, step: int) -> None:
    left = counts.get(key, 0) + step
    if left:
        counts[key] = left
    else:
        del counts[key]


class ClaimIndex:
    """Who holds what, by path: conflicts of a claim in O(depth of its path + number of hits)."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Node] = {}

    def add(self, owner: str, claims: Iterable[Claim]) -> None:
        for claim in claims:
            self._change(owner, claim, +1)

    def remove(self, owner: str, claims: Iterable[Claim]) -> None:
        for claim in claims:
            self._change(owner, claim, -1)

    def _change(self, owner: str, claim: Claim, step: int) -> None:
        shape = pattern(claim.path)
        trail = [self._kinds.setdefault(claim.kind, _Node())]
        for segment in shape.anchor:
            _count(trail[-1].below, (owner, claim.shared), step)
            trail.append(trail[-1].children.setdefault(segment, _Node()))
        _count(trail[-1].wild if shape.wild else trail[-1].exact, (owner, claim), step)
        if step < 0:
            self._prune(claim.kind, trail, shape.anchor)

    def _prune(self, kind: str, trail: list[_Node], anchor: Segments) -> None:
        for depth in range(len(anchor), 0, -1):
            if not trail[depth].empty:
                return
            del trail[depth - 1].children[anchor[depth - 1]]
        if trail[0].empty:
            del self._kinds[kind]

    def conflicts(self, owner: str, claim: Claim) -> Iterator[tuple[str, Claim]]:
        """The holders, other than `owner`, whose claims conflict with this one, and those claims."""
        node = self._kinds.get(claim.kind)
        shape = pattern(claim.path)
        for segment in shape.anchor:
            if node is None:
                return
            yield from _hits(node.wild, owner, claim)
            node = node.children.get(segment)
        if node is None:
            return
        yield from _hits(node.wild, owner, claim)
        yield from _hits(node.exact, owner, claim)
        if shape.wild:
            yield from _below(node, owner, claim)

    def blockers(self, owner: str, claims: Iterable[Claim]) -> dict[str, tuple[Claim, Claim]]:
        """For each other holder in the way: one of the wanted claims, and the claim of theirs it meets."""
        found: dict[str, tuple[Claim, Claim]] = {}
        for wanted in claims:
            for other, held in self.conflicts(owner, wanted):
                found.setdefault(other, (wanted, held))
        return found


def _hits(claims: dict[tuple[str, Claim], int], owner: str, wanted: Claim) -> Iterator[tuple[str, Claim]]:
    for other, held in claims:
        if other != owner and conflict(wanted, held):
            yield other, held


def _below(node: _Node, owner: str, wanted: Claim) -> Iterator[tuple[str, Claim]]:
    stack = [node]
    while stack:
        node = stack.pop()
        if all(other == owner or (shared and wanted.shared) for other, shared in node.below):
            continue
        for child in node.children.values():
            yield from _hits(child.exact, owner, wanted)
            yield from _hits(child.wild, owner, wanted)
            stack.append(child)
