"""A branch on the disk, and not only in the system's memory: what is promised to be there after a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from necrocode.git.calls import run
from necrocode.statedir import sync, told

_MANY = 200
"""Objects; for more of them it is faster to flush all that the system has."""


def sync_branch(name: str, base: str, *, common_dir: Path) -> None:
    """Flush the branch (if there is one), and the objects that it has over `base`, whoever made them.

    What our own calls of git make is flushed by git. An agent's git leaves loose objects to the system, and a power
    cut would leave them as empty files, on which every later git fails. Raises StateUnusable."""
    wanted = ("--objects", "--ignore-missing", f"refs/heads/{name}", f"^{base}")
    said = run("rev-list", *wanted, "--", cwd=common_dir).stdout
    objects = [line.partition(" ")[0] for line in said.splitlines()]
    with told(common_dir):
        if len(objects) > _MANY:
            os.sync()
            return
        for path in _files(objects, Path("refs/heads", name), common_dir):
            with suppress(FileNotFoundError, NotADirectoryError):  # in a pack, which git has flushed
                sync(path)


def _files(objects: list[str], ref: Path, common_dir: Path) -> Iterator[Path]:
    """The files, and after them the folders that have their names."""
    loose = [common_dir / "objects" / name[:2] / name[2:] for name in objects]
    yield from loose
    if loose:
        yield from sorted({path.parent for path in loose})
        yield common_dir / "objects"
    yield common_dir / ref
    yield from (common_dir / folder for folder in ref.parents if folder.parts)
