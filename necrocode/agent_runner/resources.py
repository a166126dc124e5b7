"""What a runner's work space, files and branches are as claims: every spelling of one thing becomes one claim.

Names belong to the repository that the work space lies in, so two work trees of one repository meet and two
repositories do not. Work spaces in no repository, or not made yet, share one space of names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from necrocode import git
from necrocode.claim import Claim
from necrocode.errors import ConfigError
from necrocode.git import Repository, StrPath


class Place(NamedTuple):
    """One work space, by its real path, and the repository that its names belong to."""

    workspace: str
    repository: Repository

    @classmethod
    def bare(cls, root: str) -> Place:
        """The place of names that belong to no repository."""
        return cls(root, Repository(Path(root), Path(root), "", False))

    @property
    def in_repository(self) -> bool:
        return bool(self.repository.identity)

    def files(self, paths: Iterable[str]) -> tuple[Claim, ...]:
        """Claims on paths or patterns, relative to the work space or absolute; a directory means all below it.

        Raises ConfigError for a path that names nothing."""
        return tuple(dict.fromkeys(self._file(os.fspath(path)) for path in named(paths)))

    def branches(self, names: Iterable[str]) -> tuple[Claim, ...]:
        """Claims on branches. Raises ConfigError for a name that git would not take."""
        known = self.repository if self.in_repository else None
        return tuple(dict.fromkeys(_branch(known, name) for name in named(names)))

    def _file(self, path: str) -> Claim:
        try:
            return git.path_claim(self.repository, path, cwd=self.workspace)
        except ConfigError:
            target = os.path.realpath(os.path.join(self.workspace, path))
            if not path or "\0" in path or Path(target).is_relative_to(self.repository.root):
                raise
            return _elsewhere(target)


def place_of(workspace_path: StrPath) -> Place:
    """The work space at this path. Raises ConfigError when git does not trust its repository, or is missing."""
    root = real(workspace_path)
    inode = _inode(root)
    if inode is None or not git.top_above(root):
        return Place.bare(root)
    return Place(root, _repository(root, inode))


def _elsewhere(target: str) -> Claim:
    """The claim on a real path outside the work space: the repository's that it lies in, or a place on the disk."""
    there = place_of(next(above for above in Path(target).parents if os.path.isdir(above)))
    return git.path_claim(there.repository if there.in_repository else git.DISK, target)


def workspace_claim(workspace_path: StrPath) -> Claim:
    return Claim.workspace(real(workspace_path))


def unplaced(files: Iterable[str], branches: Iterable[str]) -> tuple[Claim, ...]:
    """The names as they are written, for somebody who works nowhere yet."""
    return (*map(Claim.file, named(files)), *map(Claim.branch, named(branches)))


def real(workspace_path: StrPath) -> str:
    """Its one absolute spelling. Raises ConfigError for what is no path."""
    path = os.fspath(workspace_path) if isinstance(workspace_path, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"workspace_path {workspace_path!r} is no directory", hint="give its path")
    return os.path.realpath(os.path.expanduser(path))


def named(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; one text is one name, never its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _inode(root: str) -> int | None:
    try:
        return os.stat(root).st_ino
    except OSError:
        return None


@lru_cache(512)
def _repository(root: str, inode: int) -> Repository:
    # The inode is part of the key: a work space made anew under the same name is asked about again.
    return git.open_repository(root)


@lru_cache(4096)
def _branch(repository: Repository | None, name: str) -> Claim:
    return git.branch_claim(repository, name) if repository else Claim.branch(name)
