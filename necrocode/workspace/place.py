"""What a workspace is, where it lies, and how its name is written in refs."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from necrocode.errors import ConfigError
from necrocode.git import Repository

Mode = Literal["worktree", "clone", "given", "none"]

OURS = "necrocode/"
"""Branches below this are named by necrocode: each attempt starts them anew from its base."""

SNAPSHOTS = "refs/necrocode/snap"

CLONES = "refs/necrocode/clone"

INCOMING = "refs/necrocode/incoming"
"""Where work is saved for good, where clones are recorded, where fetched commits lie for a moment."""

WORKTREES = ".worktrees"
"""What the name of the directory of workspaces beside a repository ends with."""

REASON = re.compile(
    r"necrocode (?P<holder>.*?)(?: on (?P<branch>.+) from (?P<base>[0-9a-f]{40,64})(?: at (?P<path>.+))?)?", re.DOTALL
)
"""What the lock of a linked work tree says, `Wanted.reason`; some were made before it said all of this."""

HALF_MADE = ".new-"
"""What the name of a clone begins with until it is whole."""


class Workspace(NamedTuple):
    """A directory to work in: the branch checked out in it, the commit that branch was started from, the names of
    the snapshot refs that were made while it was prepared. `branch` and `base` are "" in mode `none`."""

    path: Path
    branch: str
    base: str
    repository: Repository | None
    mode: Mode
    state_root: Path
    saved: tuple[str, ...] = ()

    @property
    def repo(self) -> Repository:
        """The repository; only mode `none` has none."""
        if self.repository is None:
            raise ConfigError(f"{self.path} is no git workspace")
        return self.repository


class Wanted(NamedTuple):
    """What `prepare` was asked for, resolved: `base` is a commit, `path` real, `fresh` decided, `join` any revision
    that a branch which is there is to have too, or ""."""

    repository: Repository
    state_root: Path
    path: Path
    branch: str
    base: str
    holder: str
    fresh: bool
    join: str = ""

    @property
    def home(self) -> Path:
        """Where to call git: the directory that stays, whichever of the work trees is removed meanwhile."""
        return self.repository.common_dir

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"

    @property
    def reason(self) -> str:
        """What the lock of a linked work tree says."""
        return f"necrocode {self.holder} on {self.branch} from {self.base} at {self.path}"


def default_directory(repository: Repository) -> Path:
    """`<repo>.worktrees` beside the main work tree (or beside the bare repository)."""
    common = repository.common_dir
    top = common.parent if common.name == ".git" else common
    return top.parent / f"{top.name.removesuffix('.git')}{WORKTREES}"


def clone_ref(path: Path) -> str:
    """The ref that records a shared clone."""
    return f"{CLONES}/{ref_name(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def ref_name(path: Path) -> str:
    """The last part of a path as one part of a ref: bytes that refs cannot have are written %XX."""
    text = re.sub(rb"[^A-Za-z0-9._-]", _percent, os.fsencode(path.name))
    return re.sub(rb"^\.|\.(?=\.|$|lock$)", _percent, text).decode() or "%2F"


def _percent(match: re.Match[bytes]) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in match[0])
