"""The one funnel through which git is called.

Nothing of the caller's GIT_* reaches git, no hook and no file-system monitor of the repository is started, no
prompt can appear. Output is text decoded with `surrogateescape`, so paths in any encoding survive the round trip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from necrocode.errors import ConfigError, GitFailed

StrPath = str | os.PathLike[str]

OLDEST = (2, 38)
"""The first git with `merge-tree --write-tree`."""

_SETTINGS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.filesRefLockTimeout=1000", "core.packedRefsTimeout=1000",
    "gc.auto=0", "maintenance.auto=false", "submodule.recurse=false", "protocol.ext.allow=never",
    "advice.addEmbeddedRepo=false",
    # A snapshot must be on the disk before what it saves is removed, and a commit before its result is told; flushed
    # together, since thousands of files one by one would take a minute.
    "core.fsync=objects,derived-metadata,reference", "core.fsyncMethod=batch",
)  # fmt: skip

_IN_THE_WAY = re.compile(r"'(refs/[^']+)' exists; cannot create")
"""A ref where a folder of refs would have to be."""

YES_OR_NO = (0, 1)
"""Exit codes of git's questions; anything else is a failure, not a no."""


class Completed(NamedTuple):
    """What one git call said."""

    stdout: str
    stderr: str
    returncode: int


def run(
    *args: str,
    cwd: StrPath,
    input: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    ok: Collection[int] = (0,),
    keep: Collection[int] = (),
) -> Completed:
    """Run `git *args` in `cwd` and return what it said; `keep` are descriptors that stay open in it.

    Raises GitFailed for an exit code that is not in `ok` unless `check` is False, ConfigError when there is no git
    or no such directory, OSError when the machine has no process or descriptor left for it."""
    given = os.fsencode(input) if isinstance(input, str) else input
    with start_git(args, cwd, subprocess.DEVNULL if given is None else subprocess.PIPE, env, keep) as process:
        stdout, stderr = process.communicate(given)
    done = Completed(os.fsdecode(stdout), os.fsdecode(stderr), process.returncode)
    if check and done.returncode not in ok:
        raise GitFailed(("git", *args), done.returncode, done.stderr, hint=_hint(done.stderr))
    return done


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without its GIT_* variables, in the C locale, never prompting; plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    fixed = {"LC_ALL": "C", "LANGUAGE": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    return {**kept, **fixed, **(extra or {})}


def start_git(
    args: tuple[str, ...], cwd: StrPath, stdin: int, env: Mapping[str, str] | None, keep: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    try:
        return subprocess.Popen(
            [git_binary(os.environ.get("PATH")), "--no-pager", *settings, *args],
            cwd=cwd, env=clean_environment(env), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Its own session: a Ctrl-C meant for us must not cut an administrative step in half.
            start_new_session=True, pass_fds=tuple(keep),
        )  # fmt: skip
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not Path(cwd).is_dir():
            raise ConfigError(f"{os.fspath(cwd)} is not a directory") from None
        error.filename = error.filename or f"git {args[0]}"  # of a pipe or a fork that was refused
        raise


@lru_cache(8)
def git_binary(search_path: str | None) -> str:
    # Found here, not by the child: a relative entry of PATH would be looked up inside the agent's workspace.
    found = shutil.which("git", path=search_path)
    if found is None:
        raise ConfigError("git is not installed, or not on PATH", hint="install git (apt install git) and try again")
    return os.path.abspath(found)


def _hint(stderr: str) -> str:
    if ".lock': File exists" in stderr:
        return "another git works there; when none does, a killed one left the lock file named above: delete it"
    if found := _IN_THE_WAY.search(stderr):
        return f"that ref is in the way; when nobody needs it: git update-ref -d {found[1]}"
    if "insufficient permission" in stderr:
        return "git's own directory must be writable for you: look at its owner and mode"
    if "No space left" in stderr:
        return "free some space on that file system"
    if "unable to write" in stderr:  # here git names no cause
        return "most likely its file system is full: free some space"
    return ""


def one_line(*args: str, cwd: StrPath, ok: Collection[int] = (0,)) -> str:
    return run(*args, cwd=cwd, ok=ok).stdout.removesuffix("\n")


def nul_separated(text: str) -> list[str]:
    return text.split("\0")[:-1]


@lru_cache(8)
def checked_version(binary: str) -> tuple[int, ...]:
    said = subprocess.run(
        [binary, "version"], capture_output=True, text=True, env=clean_environment(), check=False
    ).stdout
    found = tuple(map(int, re.findall(r"\d+", said)[:2]))
    if found < OLDEST:
        raise ConfigError(
            f"{said.strip() or binary} is too old", hint=f"git {OLDEST[0]}.{OLDEST[1]} or newer is needed"
        )
    return found
