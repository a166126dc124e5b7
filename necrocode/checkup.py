"""The checks of `necrocode doctor`: the machine, the state directory, and what lies in it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from necrocode import inventory, journal, machine, process
from necrocode.errors import NecrocodeError, StateUnusable, advice
from necrocode.ledger.files import FileLedger
from necrocode.machine import Finding
from necrocode.mounts import filesystem, refuse_remote
from necrocode.screen import duration
from necrocode.statedir import FOLDERS, FORMAT, UNSHARED, StateDir, is_there, put

_FREE = 100 << 20
_PATIENCE = 2.0
_TRY_LOCK = """\
import fcntl, sys
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(3)
"""
_HELD = 3
_GROUND = ("places", "gate")
"""Checks without which none of those after them can be made."""


def check(root: Path, where: Path) -> Iterator[Finding]:
    """All findings for the state directory at `root`, and for the repository at `where`. Only looks."""
    yield Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.release()}")
    yield from _each("git", lambda: machine.of_git(where))
    yield from _each("libraries", machine.libraries)
    yield from _each("descriptors", machine.descriptors)
    yield from _each("inotify", machine.inotify)
    try:
        state = StateDir(root) if is_there(root) else None
    except StateUnusable as error:
        yield Finding("state directory", False, str(error), error.hint, _chmod(root) or _version(root, error))
        return
    if state is None:
        yield from _each("state directory", lambda: _missing(root))
        return
    yield Finding("state directory", True, f"{root}, format {state.version}")
    yield from _of_state(state, where)


def _of_state(state: StateDir, where: Path) -> Iterator[Finding]:
    ledger = FileLedger(state, patience=_PATIENCE)
    for name, look in (
        ("file system", lambda: _file_system(state)), ("places", lambda: _places(state)),
        ("folders", lambda: _folders(state)),
        ("locks", lambda: _locks(state)), ("pipes", lambda: _pipes(state)), ("space", lambda: _space(state)),
        ("gate", lambda: _gate(state)), ("clock", lambda: _clock(state)), *inventory.looks(ledger, where),
    ):  # fmt: skip
        found = list(_each(name, look))
        yield from found
        if name in _GROUND and any(not one.ok and one.mend for one in found):
            return  # what stands on it could only be told wrongly; it is looked at when this is mended


def _each(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one check; one that cannot even look is a finding too."""
    try:
        yield from look()
    except NecrocodeError as error:
        yield Finding(name, False, str(error), error.hint)
    except OSError as error:
        yield Finding(name, False, f"could not be looked at: {error}", _fix_of(error))


def _fix_of(error: OSError) -> str:
    if isinstance(error, PermissionError) and error.filename:
        return f"chmod u+rwX '{error.filename}'"
    return advice(error) or "put right what is told above, then look again"


# -- the state directory


def _missing(root: Path) -> Iterator[Finding]:
    if root.exists():
        yield Finding("state directory", True, f"{root} is empty, and can be used")
        return
    above = next(place for place in root.parents if place.exists())
    refuse_remote(above)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".necrocode-", dir=above))
    except OSError as error:
        said = f"{root} cannot be made: {above}: {error.strerror}"
        yield Finding("state directory", False, said, "choose another one: --state-dir, or NECROCODE_STATE_DIR")
    else:
        yield Finding("state directory", True, f"{root} is not there yet, and can be made")


def _chmod(root: Path) -> Callable[[], object] | None:
    try:
        found = root.stat()
    except OSError:
        return None  # a link to nowhere
    loose = root.is_dir() and found.st_uid == os.geteuid() and found.st_mode & 0o022
    return (lambda: root.chmod(0o700)) if loose else None


def _version(root: Path, error: StateUnusable) -> Callable[[], object] | None:
    path = root / "VERSION"
    if error.path != str(path) or path.exists():
        return None
    return lambda: put(path, f"{FORMAT}\n".encode(), durable=True)


def _places(state: StateDir) -> Iterator[Finding]:
    """Whether something else stands where a folder should be: no right to it would help."""
    taken = [state.root / name for name in FOLDERS if not (state.root / name).is_dir()]
    if taken:
        fix = "; ".join(f"mv '{path}' '{path}.aside'" for path in taken)
        said = f"no folder: {', '.join(path.name for path in taken)}"
        yield Finding("places", False, said, fix, lambda: _moved_aside(state, taken))


def _moved_aside(state: StateDir, places: list[Path]) -> None:
    for path in places:
        path.rename(f"{path}.aside")
    state.make_folders()


def _folders(state: StateDir) -> Iterator[Finding]:
    """Whether all of them can be read and written: each is needed by some command."""
    shut = [name for name in FOLDERS if not os.access(state.root / name, os.R_OK | os.W_OK | os.X_OK)]
    if _is_read_only(state):
        fix = "mount it for writing, or choose another place: --state-dir"
        yield Finding("folders", False, "the file system is read-only: only looking works", fix)
    elif shut:
        mode = 0o2770 if state.shared_by_group else 0o700
        paths = [state.root / name for name in shut]
        fix = f"chmod {mode:o} {' '.join(map(str, paths))}"
        yield Finding("folders", False, f"not yours to write: {', '.join(shut)}", fix, lambda: _opened(paths, mode))
    else:
        yield Finding("folders", True, "all can be written")


def _is_read_only(state: StateDir) -> bool:
    return bool(os.statvfs(state.root).f_flag & os.ST_RDONLY)


def _opened(folders: list[Path], mode: int) -> None:
    for folder in folders:
        folder.chmod(mode)


def _file_system(state: StateDir) -> Iterator[Finding]:
    refuse_remote(state.root)
    yield Finding("file system", True, filesystem(state.root) or "of unknown type")


@contextmanager
def _scratch(state: StateDir, name: str) -> Iterator[Path]:
    path = state.tmp / f"doctor-{name}.{os.getpid()}.{os.urandom(3).hex()}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _locks(state: StateDir) -> Iterator[Finding]:
    """Whether a lock that one process holds is refused to another one, and given to it afterwards."""
    with _scratch(state, "lock") as path:
        path.touch(0o600)
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while_held = _another_tries(state, path)
        afterwards = _another_tries(state, path)
    if (while_held, afterwards) == (_HELD, 0):
        yield Finding("locks", True, "what one process holds, another one is refused")
    else:
        said = "two processes could hold one lock" if while_held == 0 else f"another process ended with {while_held}"
        if while_held == _HELD:
            said = f"a lock that was given back could not be taken ({afterwards})"
        yield Finding("locks", False, said, "put the state directory on a local disk: --state-dir")


def _another_tries(state: StateDir, path: Path) -> int | str:
    with _scratch(state, "log") as log:
        ended = process.run(
            [sys.executable, "-c", _TRY_LOCK, str(path)], cwd=state.tmp, env=os.environ, stdout=log, stderr=log,
            limits=process.Limits(total=10.0, grace=0.5), marker=f"doctor-{os.urandom(6).hex()}",
        )  # fmt: skip
    return ended.exit_code if ended.why == "exited" and ended.exit_code is not None else ended.why


def _pipes(state: StateDir) -> Iterator[Finding]:
    with _scratch(state, "pipe") as path:
        try:
            os.mkfifo(path, 0o600)
        except OSError as error:
            said = f"no named pipes here ({error.strerror}): waiters are woken only by the clock"
            yield Finding("pipes", False, said, "put the state directory on a local disk: --state-dir")
            return
    yield Finding("pipes", True, "named pipes work")


def _space(state: StateDir) -> Iterator[Finding]:
    free = shutil.disk_usage(state.root).free
    ok = free >= _FREE
    yield Finding("space", ok, f"{free / (1 << 30):.1f} GiB free", "" if ok else "free some space; necrocode gc")


def _gate(state: StateDir) -> Iterator[Finding]:
    """Whether the gate opens; who is inside when it does not. On a read-only file system nobody comes in, which
    `_folders` tells."""
    if _is_read_only(state):
        return
    if not state.lock.exists():
        yield Finding("gate", True, "nobody has come in yet")
        return
    if not os.access(state.lock, os.R_OK | os.W_OK):
        fix = f"chmod {state.file_mode:o} {state.lock}"
        said = "it cannot be opened: nobody can come in"
        yield Finding("gate", False, said, fix, lambda: state.lock.chmod(state.file_mode))
        return
    descriptor = os.open(state.lock, os.O_RDWR | UNSHARED)
    try:
        until = time.monotonic() + _PATIENCE
        while not _opens(descriptor):
            if time.monotonic() > until:
                inside = os.pread(descriptor, 96, 64).decode(errors="replace").strip(" \n\0")
                said = f"it has been shut for {_PATIENCE:g} s; inside: {inside}"
                yield Finding("gate", False, said, "that process may be stopped: kill -CONT its pid, or end it")
                return
            time.sleep(0.005)
        yield Finding("gate", True, "it opens")
    finally:
        os.close(descriptor)


def _opens(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _clock(state: StateDir) -> Iterator[Finding]:
    last = max((event.at for event in journal.recent(state.events, 1 << 14)), default=0.0)
    ahead = last - time.time()
    if ahead > 60:
        yield Finding("clock", False, f"the newest event lies {duration(ahead)} in the future", "timedatectl status")
    else:
        yield Finding("clock", True, f"boot {process.boot_id()[:8]}")
