"""Count to a number under a named mutex, in a process of its own with one version of filelock: COUNTER STATE TIMES."""

from __future__ import annotations

import sys
from pathlib import Path

from necrocode import git
from necrocode.git import Repository


def count(counter: Path, state: Path, times: int) -> None:
    repository = Repository(counter.parent, counter.parent, "the same for all", False)
    for _ in range(times):
        with git.repository_mutex(state, repository, timeout=60):
            number = int(counter.read_text())
            counter.write_text(str(number + 1))  # not atomic: two inside at once lose one


if __name__ == "__main__":
    import filelock

    print(filelock.__version__, flush=True)
    sys.stdin.readline()
    count(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
