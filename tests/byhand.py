"""What a test does by its own hand, with plain programs, not with necrocode."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def sh(*argv: str, cwd: Path, **env: str) -> str:
    """Run a command that has to go well; its output without the last line break."""
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return os.fsdecode(done.stdout).removesuffix("\n")


def copied(template: Path, place: Path) -> Path:
    """A repository like another one. Hundreds of tests want one, and making it anew takes git ten times as long."""
    shutil.copytree(template, place, symlinks=True, ignore=shutil.ignore_patterns("*.sample"))
    sh("git", "update-index", "-q", "--refresh", cwd=place)
    return place
