"""What a test does by its own hand, with plain programs, not with necrocode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def sh(*argv: str, cwd: Path, **env: str) -> str:
    """Run a command that has to go well; its output without the last line break."""
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return os.fsdecode(done.stdout).removesuffix("\n")
