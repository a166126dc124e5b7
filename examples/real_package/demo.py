"""The main job on real input: many tools at once on the sources of a well-known package.

Fetches a source distribution with pip, makes it a git repository, lets somebody else hold a part of it, runs the
eleven tasks of tasks.toml beside each other, and shows what came of it. About a minute; everything stays in
one directory that is named at the end (or is given as the first argument).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from necrocode import journal
from necrocode.metrics import fold
from necrocode.testing import wait_for

HERE = Path(__file__).resolve().parent
PACKAGE = "click==8.1.8"
BIN = Path(sys.executable).parent


def main() -> int:
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="necrocode-demo-")).absolute()
    place.mkdir(parents=True, exist_ok=True)
    state = place / "state"
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "NECROCODE_STATE_DIR": str(state), "EXAMPLE": str(HERE), "PATH": path}
    repository = fetched(place, env)

    say("Somebody else on this machine is editing docs/quickstart.rst for five seconds:")
    stranger = held(repository, env, state, "docs/quickstart.rst", seconds=5)

    say("Eleven tasks at once (four want the same files, one wants what the stranger holds):")
    command = [BIN / "necrocode", "run", HERE / "tasks.toml", "--jobs", "4"]
    code = subprocess.run(command, cwd=repository, env=env).returncode
    stranger.wait()

    say("Each task's work is on its branch; those that shared files build on each other:")
    subprocess.run(["git", "log", "--oneline", "--graph", "--branches=necrocode/*", "-30"], cwd=repository, env=env)
    say("Told from the events of the run:")
    print(told(state))
    print(f"\nLook around: cd {repository}; export NECROCODE_STATE_DIR={state}; necrocode status")
    return code


def fetched(place: Path, env: Mapping[str, str]) -> Path:
    """The package's sources as a git repository with one commit."""
    say(f"Fetching the sources of {PACKAGE}:")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGE]
    subprocess.run([*pip, "--dest", place], check=True, env=env)
    archive = next(place.glob("*.tar.gz"))
    with tarfile.open(archive) as sources:
        sources.extractall(place, filter="data")
    repository = place / archive.name.removesuffix(".tar.gz")
    for git in ("init --quiet -b main", "add --all", "commit --quiet -m 'Sources as released'"):
        identity = "-c user.name=demo -c user.email=demo@localhost"
        subprocess.run(f"git {identity} {git}", shell=True, cwd=repository, check=True, env=env)
    return repository


def held(repository: Path, env: Mapping[str, str], state: Path, path: str, seconds: int) -> subprocess.Popen[bytes]:
    """A process that holds a file, as anybody's command can, and says when it does."""
    command = [BIN / "necrocode", "exec", "--name", "somebody-else", "--file", path, "--", "sleep", str(seconds)]
    stranger = subprocess.Popen(command, cwd=repository, env=env)
    wait_for(lambda: list((state / "runners").glob("somebody-else.*")), within=20)
    return stranger


def told(state: Path) -> str:
    metrics = fold(journal.read(state / "events"))
    total, concurrency = metrics.total, metrics.concurrency
    return "\n".join(
        (
            f"  most at once         {concurrency.max}",
            f"  conflicts avoided    {total.conflicts_avoided}  (tasks that wanted the same files, put in line)",
            f"  conflicts detected   {total.conflicts_detected}  (met at the gate with a stranger, and waited for)",
            f"  longest wait         {total.waits.max:.1f} s",
            f"  attempts             {', '.join(f'{count} {status}' for status, count in total.attempts.items())}",
        )
    )


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
