"""What an attempt changed, kept with its result: the facts for its outcome, and the difference as a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from necrocode import git
from necrocode.statedir import put
from necrocode.workspace import Workspace

DIFF_LIMIT = 1 << 20
"""Bytes, after which diff.patch is cut."""


def kept(place: Workspace, folder: Path) -> dict[str, Any]:
    """What the branch has over its base, by the names of Outcome; diff.patch is on the disk before a result can name
    it. Nothing when the branch has nothing. Raises GitFailed, OSError."""
    root, tip = place.repo.common_dir, git.branch_tip(place.branch, cwd=place.repo.common_dir)
    if not tip or tip == place.base:
        return {}
    # An older branch lacks what its base got since: that is nothing which it took away.
    since = git.merge_base(place.base, tip, cwd=root) or place.base
    changes = git.changes(since, tip, cwd=root)
    put(folder / "diff.patch", os.fsencode(git.diff(since, tip, cwd=root, limit=DIFF_LIMIT)), durable=True)
    return {
        "commits": tuple(git.commits(place.base, tip, cwd=root)),
        "files_changed": tuple(change.path for change in changes),
        "lines_added": sum(change.added or 0 for change in changes),
        "lines_removed": sum(change.removed or 0 for change in changes),
        "artifacts": {"diff": "diff.patch"},
    }
