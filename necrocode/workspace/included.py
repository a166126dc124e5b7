"""The files that git ignores and a workspace needs all the same: .env and the like."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from necrocode import git

INCLUDE = ".worktreeinclude"


def copy_included(source: Path, target: Path) -> list[str]:
    """Copy the files of a checkout that its .worktreeinclude names and git ignores (.env and the like).

    The file has gitignore's syntax, and git itself matches it. Links are copied as links when they stay inside,
    else left out; nothing that the workspace has already is replaced."""
    if not (source / INCLUDE).is_file():
        return []
    listing = ("ls-files", "-z", "--others", "--ignored", f"--exclude-from={source / INCLUDE}")
    named = git.run(*listing, cwd=source).stdout
    ignored = git.run("check-ignore", "-z", "--stdin", cwd=source, input=named, ok=git.YES_OR_NO).stdout
    return [name for name in ignored.split("\0")[:-1] if _copy(source, target, name)]


def _copy(source: Path, target: Path, name: str) -> bool:
    here, there = source / name, target / name
    real = Path(os.path.realpath(target))
    if os.path.lexists(there) or not Path(os.path.realpath(there.parent)).is_relative_to(real):
        return False
    mode = here.lstat().st_mode
    inside = (
        Path(os.path.realpath(here)).is_relative_to(os.path.realpath(source)) and not os.readlink(here).startswith("/")
        if stat.S_ISLNK(mode)
        else stat.S_ISREG(mode)
    )
    if inside:
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, there, follow_symlinks=False)
    return inside
