"""The claim algebra: what can be claimed, when two claims conflict, and an index that answers fast.

A claim names a path pattern within a kind. Two claims conflict when they are of one kind, their patterns can name a
common path, and not both are shared; of files also when one is a path that the other goes on below. Everything here is
text: what only the disk knows (symbolic links, case, whether a path is a directory) is resolved before a claim is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from necrocode.errors import ConfigError
from necrocode.patterns import Pattern, Segments, escaped, normalised, overlap, pattern, unescaped


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
    def branch(cls, name: str, repository: str = "", *, shared: bool = False) -> Claim:
        """A branch; `a` and `a/b` conflict, since git cannot hold both."""
        return cls(f"branch:{repository}", f"{normalised(name.removeprefix('refs/heads/'))}/**", shared)

    @classmethod
    def workspace(cls, path: str, *, shared: bool = False) -> Claim:
        """A directory that one runner works in; nested ones conflict. Give the real, absolute path."""
        return cls("workspace", f"{escaped(normalised(path, literal=True))}/**".lstrip("/"), shared)

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
            return cls.branch(path, repository, shared=shared)
        if kind == "workspace":
            return cls.workspace(path, shared=shared)
        return cls(kind, normalised(path), shared)

    @property
    def family(self) -> str:
        """The kind without the repository it belongs to: file, branch, workspace, port, ..."""
        return self.kind.partition(":")[0]

    @property
    def name(self) -> str:
        """The path as people write it: branches and workspaces without the `/**` they are stored with."""
        if self.family == "workspace":
            return "/" + unescaped(self.path.removesuffix("/**"))
        return self.path.removesuffix("/**") if self.family == "branch" else self.path

    @property
    def sticky(self) -> bool:
        """Whether it stays held after its lease was fenced, until its holder is proven dead: a directory, or the
        branch checked out in it, cannot check a token."""
        return self.family in ("workspace", "branch")

    @property
    def is_file(self) -> bool:
        """Whether it names files: none of them can be a directory at the same time, so that `a` meets `a/b`, also
        while neither is there."""
        return self.kind.startswith("file:")

    def __str__(self) -> str:
        return f"{'shared:' if self.shared else ''}{self.family}:{self.name}"


def conflict(ours: Claim, theirs: Claim) -> bool:
    """Whether both may not be held at once by different holders."""
    if ours.kind != theirs.kind or (ours.shared and theirs.shared):
        return False
    one, other = pattern(ours.path), pattern(theirs.path)
    if overlap(one.segments, other.segments):
        return True
    return ours.is_file and (one.is_above(other) or other.is_above(one))


_Counts = tuple[dict[Any, int], dict[Any, int]]
"""How often each is there: of exclusive claims, and apart from them of shared ones, which no shared claim meets."""

_NOTHING: _Counts = ({}, {})
"""What most nodes have of most things; thousands of them are made at once."""


class _Node:
    """One literal path in the index: who holds claims anchored exactly here, those with wildcards by what the names
    that fit begin with; and the owners of the claims that lie below."""

    __slots__ = ("below", "children", "exact", "wild")

    def __init__(self) -> None:
        self.exact = self.below = _NOTHING
        self.wild: dict[str, _Counts] = {}
        self.children: dict[str, _Node] = {}

    @property
    def empty(self) -> bool:
        return not (any(self.exact) or self.wild or self.children)

    def change(self, owner: str, claim: Claim, shape: Pattern, step: int) -> None:
        if not shape.wild:
            self.exact = _counted(self.exact, claim.shared, (owner, claim), step)
            return
        held = _counted(self.wild.get(shape.start, _NOTHING), claim.shared, (owner, claim), step)
        self.wild[shape.start] = held
        if not any(held):
            del self.wild[shape.start]

    def fitting(self, name: str) -> Iterator[_Counts]:
        """The claims with wildcards that a path which goes on with this name may fit."""
        for length in range(len(name) + 1) if self.wild else ():
            if held := self.wild.get(name[:length]):
                yield held

    def beside(self, start: str) -> Iterator[_Counts]:
        """The claims with wildcards that may fit a name which begins like this."""
        return (held for one, held in self.wild.items() if one.startswith(start) or start.startswith(one))


def _counted(counts: _Counts, shared: bool, key: object, step: int) -> _Counts:
    if counts is _NOTHING:
        counts = ({}, {})
    which = counts[shared]
    left = which.get(key, 0) + step
    if left:
        which[key] = left
    else:
        del which[key]
    return counts


class ClaimIndex:
    """Who holds what, by path.

    The conflicts of a literal path cost O(the letters of its path + the number of hits), beside claims with wildcards
    that begin like it also one look at each of those. A claim with wildcards looks besides at each different beginning
    of wildcards and each name in its directory, and at all that lies below those that may fit."""

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
            above = trail[-1]
            above.below = _counted(above.below, claim.shared, owner, step)
            trail.append(above.children.get(segment) or above.children.setdefault(segment, _Node()))
        trail[-1].change(owner, claim, shape, step)
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
            if claim.is_file:
                yield from _hits(node.exact, owner, claim)
            for held in node.fitting(segment):
                yield from _hits(held, owner, claim)
            node = node.children.get(segment)
        if node is None:
            return
        for held in (node.exact, *node.beside(shape.start)):
            yield from _hits(held, owner, claim)
        if shape.wild or claim.is_file:
            yield from _below(node, shape.start, owner, claim)

    def blockers(self, owner: str, claims: Iterable[Claim]) -> dict[str, tuple[Claim, Claim]]:
        """For each other holder in the way: one of the wanted claims, and the claim of theirs it meets."""
        found: dict[str, tuple[Claim, Claim]] = {}
        for wanted in claims:
            for other, held in self.conflicts(owner, wanted):
                found.setdefault(other, (wanted, held))
        return found


def _hits(held: _Counts, owner: str, wanted: Claim) -> Iterator[tuple[str, Claim]]:
    for holders in held[:1] if wanted.shared else held:
        for other, theirs in holders:
            if other != owner and conflict(wanted, theirs):
                yield other, theirs


def _below(node: _Node, start: str, owner: str, wanted: Claim) -> Iterator[tuple[str, Claim]]:
    stack = [(node, start)]
    while stack:
        node, start = stack.pop()
        owners = node.below[:1] if wanted.shared else node.below
        if all(other == owner for some in owners for other in some):
            continue
        for child in (child for name, child in node.children.items() if name.startswith(start)):
            for held in (child.exact, *child.wild.values()):
                yield from _hits(held, owner, wanted)
            stack.append((child, ""))
