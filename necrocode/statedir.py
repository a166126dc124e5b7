"""Where the state's files lie, and how they are written: whole or not at all, kept when unreadable.

A state directory explains itself: a README is written into each fresh one. It belongs to one user (mode 0700), or
to a group when it was made so (setgid, mode 2770); anything looser is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from necrocode.errors import StateUnreadable, StateUnusable, advice
from necrocode.mounts import flock as flock
from necrocode.mounts import trusted

FORMAT = 1
FOLDERS = ("runners", "queue", "fenced", "live", "bells", "mutex", "events", "runs", "quarantine", "tmp")
_USED = ("runners", "queue", "events", "runs")
UNSHARED = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
"""Flags of every open here: not inherited by other programs, never through a planted symbolic link."""

README = """\
This directory coordinates necrocode's runners on this machine. Everything in it is a file you may read.

  lock        the gate: a short lock around each change, its counter, and who is inside. Never delete it.
  config.json the host's limit and quotas (`necrocode config set limit N`)
  runners/    one JSON file per live runner: who, task, workspace, what it holds   (cat is the debugger)
  queue/      one file per waiter; sorted by name they stand in service order
  fenced/     leases revoked because their runner fell silent; it may still be alive
  live/       one locked file per live process: the lock goes when the process does
  bells/      how a waiter is woken           mutex/   short locks (git, run launchers)
  events/     what happened, one file a day    runs/    plans, results and logs of `necrocode run`
  quarantine/ files that could not be read     tmp/     everything that is not yet, or no longer, true

Delete by hand: events/, quarantine/ and old folders of runs/ at any time; the whole directory when nothing runs.
Deleting a file of runners/ takes that runner's lease away; it stops at its next heartbeat.
`necrocode status` shows it all, `necrocode doctor` checks it, `necrocode gc` cleans it.
"""


def default_root() -> Path:
    """NECROCODE_STATE_DIR, or one directory per user and host."""
    if chosen := os.environ.get("NECROCODE_STATE_DIR"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    if os.uname().sysname == "Linux":  # as platformdirs has it, whose import is slower than a whole `status`
        home = os.environ.get("XDG_STATE_HOME", "").strip()
        return Path(home if os.path.isabs(home) else os.path.expanduser("~/.local/state"), "necrocode")
    import platformdirs

    return Path(platformdirs.user_state_dir("necrocode", appauthor=False))


class StateDir:
    """One opened state directory. Opening makes what is missing and refuses what cannot be trusted.

    Raises StateUnusable when it belongs to somebody else, others may write to it, it is not on a local file
    system, cannot be written, or was made by a newer necrocode."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, group: bool = False, create: bool = True) -> None:
        self.root = Path(os.path.abspath(default_root() if root is None else Path(root).expanduser()))
        with told(self.root):
            fresh = create and self._make_root(group)
            self.shared_by_group = trusted(self.root)
            if fresh or (create and not (self.root / "VERSION").exists()):
                self._furnish()
            self.version = self._version()
            if create:
                self.make_folders()

    def __getattr__(self, name: str) -> Path:
        """`state.runners`, `state.queue`, ...: the folder of that name."""
        if name in FOLDERS:
            folder: Path = self.__dict__.setdefault(name, self.root / name)
            return folder
        raise AttributeError(name)

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def file_mode(self) -> int:
        return 0o660 if self.shared_by_group else 0o600

    def _make_root(self, group: bool) -> bool:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        return _mkdir(self.root, 0o2770 if group else 0o700)

    def _furnish(self) -> None:
        """Into a directory without a VERSION: that one last, so that whoever sees it sees a whole one."""
        _check_unused(self.root)
        self.make_folders()
        if not (self.root / "README.md").exists():
            self.write(self.root / "README.md", README.encode())
        # Durably: one that a power cut left empty could not be told from damage, and would shut out everybody.
        self.write(self.root / "VERSION", f"{FORMAT}\n".encode(), durable=True)

    def make_folders(self) -> None:
        """Those that are missing: all of a new directory, and what somebody deleted, as the README allows for some."""
        mode = stat.S_IMODE(os.stat(self.root).st_mode)
        for folder in FOLDERS:
            if not os.path.isdir(self.root / folder):
                _mkdir(self.root / folder, mode)

    def _version(self) -> int:
        path = self.root / "VERSION"
        try:
            text = read(path, most=64).decode(errors="replace").strip()
        except ValueError:
            text = "more than 64 bytes"
        if not (text.isascii() and text.isdigit()):
            raise StateUnusable(
                str(path),
                f"is not a format number: {text[:40]!r}",
                hint=f"write {FORMAT} into it if you know that it is right",
            )
        if int(text) > FORMAT:
            raise StateUnusable(
                str(self.root), f"a newer necrocode wrote it (format {text}, this one knows {FORMAT})",
                hint="upgrade necrocode; nothing was changed",
            )  # fmt: skip
        return int(text)

    def write(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        """The whole file or nothing. Durable: on the disk, name included, before this returns.

        Raises StateUnusable naming the path and the cause; nothing is left behind then."""
        temporary = self.tmp / f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
        with told(path):
            put(temporary, data, mode=self.file_mode, durable=durable)
            move(temporary, path)
            if durable:
                sync(path.parent)

    def quarantine(self, path: Path) -> str:
        """Move an unreadable file aside, and say where to ("" when somebody else already did)."""
        target = self.quarantine_folder / f"{path.name[:200]}.{os.urandom(3).hex()}"
        _mkdir(self.quarantine_folder, stat.S_IMODE(os.stat(self.root).st_mode))
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return ""
        return str(target)

    @property
    def quarantine_folder(self) -> Path:
        return self.root / "quarantine"


@contextmanager
def told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever the operating system refuses inside becomes a StateUnusable with path and cause."""
    try:
        yield
    except OSError as error:
        raise refused(error, path) from error


def refused(error: OSError, path: str | os.PathLike[str]) -> StateUnusable:
    """What the operating system refused, as the error to raise; `path` when it does not say where."""
    where = error.filename if isinstance(error.filename, str) and error.filename else str(path)
    return StateUnusable(where, error.strerror or str(error), hint=advice(error))


def put(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Write a new file completely, or leave none; raises OSError naming the path, also for a short write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | UNSHARED, mode)
    try:
        try:
            share(descriptor, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)
        raise


def share(descriptor: int, mode: int) -> None:
    """Give the group the rights of `mode`, which the umask may have taken away when the file was made."""
    if mode & 0o077:
        os.fchmod(descriptor, mode)


def move(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Rename into place; when that fails, remove what was to be moved. Raises OSError."""
    try:
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: str | os.PathLike[str], most: int = 1 << 24) -> bytes:
    """The whole file, at most `most` bytes; raises OSError, ValueError for a larger one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | UNSHARED)
    try:
        data = bytearray()
        while chunk := os.read(descriptor, 1 << 16):
            data += chunk
            if len(data) > most:
                raise ValueError(f"larger than {most} bytes")
        return bytes(data)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StateUnreadable, FileNotFoundError when there is none."""
    try:
        return json.loads(read(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StateUnreadable(str(path), f"cannot be read as JSON ({error})") from error


def to_json(value: Any) -> bytes:
    """As all of the state's JSON is written: for people too, one line for each key and each item of a list.

    The library's own indentation is three times slower, and records are written at every registration."""
    if not isinstance(value, dict):
        return _encode(value).encode("utf-8", "surrogatepass") + b"\n"
    lines = ",\n".join([f"  {_encode(key)}: {_block(item)}" for key, item in value.items()])
    return f"{{\n{lines}\n}}\n".encode("utf-8", "surrogatepass")


def _block(item: Any) -> str:
    if isinstance(item, (list, tuple)) and item:
        return "[\n    " + ",\n    ".join(map(_encode, item)) + "\n  ]"
    if isinstance(item, dict) and item:
        return "{\n    " + ",\n    ".join([f"{_encode(key)}: {_encode(of)}" for key, of in item.items()]) + "\n  }"
    return _encode(item)


_whole = json.JSONEncoder(ensure_ascii=False).encode
_SCALARS: dict[type, Callable[[Any], str]] = {
    str: json.encoder.encode_basestring, int: int.__repr__,
    bool: lambda value: "true" if value else "false", type(None): lambda value: "null",
}  # fmt: skip
"""Most of a record is text, numbers and words; the library makes an encoder anew for each of those."""


def _encode(value: Any) -> str:
    if write := _SCALARS.get(type(value)):
        return write(value)
    return f"[{', '.join(map(_encode, value))}]" if type(value) in (list, tuple) else _whole(value)


def mark(root: str | os.PathLike[str], runner_id: str) -> str:
    """What the processes of this runner's work carry in their environment; another state directory's runner of the
    same id has another mark, so that none ends what is not its own."""
    return f"{runner_id}@{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8]}"


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mkdir(path: Path, mode: int) -> bool:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    if mode & 0o077:
        os.chmod(path, mode)
    return True


def is_there(root: Path) -> bool:
    """Whether a state directory is at this place, without making one; an empty directory is none yet. Raises
    StateUnusable for what is there and could not become one."""
    if not os.path.lexists(root) or (root / "VERSION").exists():
        return os.path.lexists(root)
    with told(root):
        trusted(root)
        _check_unused(root)
    return False


def _check_unused(root: Path) -> None:
    """Whether a directory without a VERSION can be given one. A creator that died half-way, or one that is at it right
    now, leaves a part of our own names; whoever uses a directory has seen its VERSION."""
    if not set(os.listdir(root)) <= {*FOLDERS, "README.md", "VERSION", "lock", "config.json", ".gitignore"}:
        hint = "name an empty or a new directory"
        raise StateUnusable(str(root), "holds other files and is no state directory", hint=hint)
    used = (root / "lock").exists() or any(os.listdir(root / name) for name in _USED if (root / name).is_dir())
    if used and not (root / "VERSION").exists():
        hint = f"if no newer necrocode was at work there, `necrocode doctor --fix` writes {FORMAT} into it"
        raise StateUnusable(str(root / "VERSION"), "is missing, although the directory has been used", hint=hint)
