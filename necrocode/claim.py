"""The claim algebra: what can be claimed, when two claims conflict, and an index that answers in O(depth).

A claim names a path pattern within a kind. Two claims conflict when they are of one kind, their patterns can name a
common path, and not both are shared. Everything here is text: what only the disk knows (symbolic links, case, whether a
path is a directory) is resolved before a claim is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from necrocode.errors import ConfigError
from necrocode.patterns import Segments, escaped, normalised, overlap, pattern, unescaped


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

    def __str__(self) -> str:
        return f"{'shared:' if self.shared else ''}{self.family}:{self.name}"


def conflict(ours: Claim, theirs: Claim) -> bool:
    """Whether both may not be held at once by different holders."""
    return (
        ours.kind == theirs.kind
        and not (ours.shared and theirs.shared)
        and overlap(pattern(ours.path).segments, pattern(theirs.path).segments)
    )


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
