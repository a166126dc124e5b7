"""A state directory with one of everything in it, and every way to damage one file of it.

After each damage people and programs look, ask and go on. What they are told is an answer or an error of
necrocode.errors, never anything else, never nothing; and whatever else lies there stays as it was."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from necrocode import cli, process
from necrocode.claim import Claim
from necrocode.errors import NecrocodeError
from necrocode.event import Event
from necrocode.journal import append
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.order import Order, write_result
from necrocode.outcome import Outcome, Status
from necrocode.runs import Plan, attempt_folder
from necrocode.statedir import FOLDERS, StateDir, to_json
from necrocode.task import Task
from necrocode.testing import forked, wait_for

PATIENCE = 30
"""Seconds after which something that hangs is ended."""
ODD = b'\x00\xff{"schema": \x1b[31m\n\r\n' * 9


class Scene:
    """Two who hold leases, one whose lease was revoked, one who waits, and a run with an attempt done."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = FileLedger(root)
        self.state = self.ledger.state
        self.ledger.configure(limit=9, quotas={"spec:s": 5})
        self.leases: dict[str, Lease] = {}
        for name, *claims in (("r1", Claim.file("a")), ("r2", Claim.file("b")), ("f", Claim.workspace("/w/f"))):
            self.leases[name] = self.ledger.register(Request(name, tuple(claims), "t", "s"))
        self.ledger.fence("f")
        self.waiter = forked(self._wait, root / "tmp" / "trouble", hang=True)
        wait_for(lambda: os.listdir(root / "queue"))
        self._run()

    def _wait(self) -> None:
        FileLedger(self.root).register(Request("w", (Claim.file("a"),)), wait=True)

    def _run(self) -> None:
        tasks = (Task("t", command=("true",)), Task("u", command=("true",), after=("t",)))
        (self.state.runs / "abc").mkdir()
        Plan("abc", tasks, {"t": (), "u": ()}, 2, mode="none").save(self.state)
        folder = attempt_folder(self.state, "abc", "t", 1)
        folder.mkdir()
        (folder / "task.json").write_bytes(to_json(Order("abc", tasks[0], 1, str(folder), "/w").to_dict()))
        (folder / "runner.json").write_bytes(to_json(process.identity()._asdict()))
        (folder.parent / "launcher.json").write_bytes(to_json({**process.identity()._asdict(), "since": 1.0}))
        (folder / "stdout.log").write_bytes(b"said\n")
        write_result(folder, Outcome("t", Status.DONE, ended=2e9))
        append(self.state.events, [Event("run.started", 2e9, 1.0, run_id="abc", facts={"tasks": 2})])

    def end(self) -> None:
        os.kill(self.waiter, signal.SIGKILL)
        os.waitpid(self.waiter, 0)
        for lease in self.leases.values():
            with suppress(NecrocodeError):
                self.ledger.release(lease)

    def files(self) -> dict[str, Path]:
        """One path of each kind."""
        day = next((self.root / "events").iterdir())
        attempt = self.root / "runs" / "abc" / "t.1"
        records = {folder: next((self.root / folder).iterdir()) for folder in ("runners", "fenced", "queue")}
        others = ("config.json", "VERSION", "README.md", "lock", "live/r1", "live/w", "bells/w", "runs/abc/plan.json",
                  "runs/abc/launcher.json")  # fmt: skip
        inside = {f"attempt {name}": attempt / name for name in sorted(os.listdir(attempt))}
        return {**records, "events": day, **{name: self.root / name for name in others}, **inside}


Hurt = Callable[[Path], None]


def _written(make: Callable[[bytes], bytes]) -> Hurt:
    def hurt(path: Path) -> None:
        data = b"" if path.is_fifo() else path.read_bytes()
        _gone(path)
        path.write_bytes(make(data))

    return hurt


def _in_place(make: Callable[[bytes], bytes]) -> Hurt:
    """The same inode, as an editor or a failing disk does it."""

    def hurt(path: Path) -> None:
        if not path.is_fifo():
            path.write_bytes(make(path.read_bytes()))

    return hurt


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _replaced(make: Callable[[Path], object]) -> Hurt:
    def hurt(path: Path) -> None:
        _gone(path)
        make(path)

    return hurt


def _huge(path: Path) -> None:
    with open(path, "r+b" if not path.is_fifo() else "rb") as file:
        file.truncate(1 << 26)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _other_values(data: bytes) -> bytes:
    """Every value is of another type; what is no JSON becomes a list."""
    try:
        value: dict[str, Any] = dict(json.loads(data))
    except (ValueError, TypeError):
        return b"[]"
    return json.dumps({key: [] if isinstance(one, (str, int)) else "x" for key, one in value.items()}).encode()


def _newer(data: bytes) -> bytes:
    try:
        return json.dumps({**json.loads(data), "schema": 99}).encode()
    except (ValueError, TypeError):
        return b"99\n"


DAMAGES: dict[str, Hurt] = {
    "gone": _gone,
    "cut in half": _in_place(lambda data: data[: len(data) // 2]),
    "empty": _in_place(lambda data: b""),
    "a new empty one": _written(lambda data: b""),
    "binary": _in_place(lambda data: random.Random(len(data)).randbytes(max(64, len(data)))),
    "odd bytes": _in_place(lambda data: ODD),
    "zeros": _in_place(lambda data: bytes(max(1, len(data)))),
    "a list": _written(lambda data: b"[]"),
    "null": _written(lambda data: b"null\n"),
    "a number too long": _written(lambda data: b"1" * 5000),
    "too deep": _written(lambda data: b"[" * 100_000),
    "values of other types": _written(_other_values),
    "of a newer schema": _written(_newer),
    "huge": lambda path: None if path.is_fifo() else _huge(path),
    "a folder": _replaced(os.mkdir),
    "a full folder": _replaced(lambda path: os.makedirs(path / "in" / "it")),
    "a link to a file": _replaced(lambda path: path.symlink_to("/etc/passwd")),
    "a link to itself": _replaced(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _replaced(lambda path: path.symlink_to("nothing/there")),
    "a link to a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a FIFO": _replaced(os.mkfifo),
    "a socket": _replaced(_socket),
    "unreadable": lambda path: path.chmod(0),
    "somebody else's": lambda path: os.chown(path, 65534, 65534) if os.geteuid() == 0 else path.chmod(0o444),
}
NAMES = (
    "x",
    "..json",
    "r1.5.0.json",
    "r1.9999999999.0.json",
    "é\udc80.1.0.json",
    "a\nb",
    "r-00-1.x.json",
    "2026-13-99.jsonl",
)
"""Of files that somebody put into a folder."""
FOLDER_DAMAGES = ("gone", "a folder", "a link to nothing", "a FIFO", "unreadable")


class Case(NamedTuple):
    """What is damaged, and how; `folder` is where a file of an odd name is put."""

    what: str
    how: str

    def hurt(self, scene: Scene) -> set[Path]:
        """Do it; what may differ afterwards."""
        if self.what in FOLDERS and self.how in NAMES:
            path = scene.root / self.what / self.how
            path.write_bytes(ODD)
        elif self.what.startswith("folder "):
            path = scene.root / self.what.removeprefix("folder ")
            DAMAGES[self.how](path)
        else:
            path = scene.files()[self.what]
            DAMAGES[self.how](path)
        return {path}


KINDS = {
    "records": ("runners", "fenced", "queue"),
    "terms and versions": ("config.json", "VERSION", "README.md"),
    "locks and bells": ("lock", "live/r1", "live/w", "bells/w"),
    "runs": ("events", "runs/abc/plan.json", "runs/abc/launcher.json"),
    "attempts": ("attempt result.json", "attempt runner.json", "attempt stdout.log", "attempt task.json"),
}
FILE_CASES = {group: [Case(kind, how) for kind in kinds for how in DAMAGES] for group, kinds in KINDS.items()}
FOLDER_CASES = [Case(f"folder {folder}", how) for folder in FOLDERS for how in FOLDER_DAMAGES]
NAME_CASES = [Case(folder, name) for folder in FOLDERS for name in NAMES]

COMMANDS = (["status"], ["why", "r1"], ["why", "abc/t"], ["gc"], ["events"], ["logs", "abc/t"], ["metrics"],
            ["report", "abc"], ["status", "--json"], ["config"], ["doctor"])  # fmt: skip
EXITS = {0, 1, 2, 75, 125}


def play(what: list[Case], base: str) -> list[str]:
    """What went wrong, case by case."""
    signal.signal(signal.SIGALRM, _too_long)
    os.environ.update(NECROCODE_DEBUG="1", NO_COLOR="1")
    wrong = []
    for at, case in enumerate(what):
        root = Path(tempfile.mkdtemp(dir=base))
        try:
            signal.alarm(PATIENCE)
            scene = Scene(root / "state")
            try:
                _go_on(scene, case, at)
            finally:
                signal.alarm(PATIENCE)
                scene.end()
        except Exception as error:  # noqa: BLE001 - told to the test
            wrong.append(f"{case}: {error!r}\n{traceback.format_exc(limit=-6)}")
        finally:
            signal.alarm(0)
            for path in (root / "state").glob("*"):
                with suppress(OSError):
                    path.chmod(0o700)
            shutil.rmtree(root, ignore_errors=True)
        if len(wrong) > 5:
            break
    return wrong


def _too_long(number: int, frame: object) -> None:
    raise AssertionError(f"it takes longer than {PATIENCE} s")


def _go_on(scene: Scene, case: Case, at: int) -> None:
    changed = case.hurt(scene)
    before = _seen(scene.root)
    for argv in (["status"], *(COMMANDS[one % len(COMMANDS)] for one in range(at * 2, at * 2 + 2))):
        code, said = _command(scene.root, argv)
        assert code in EXITS and "should not have happened" not in said, f"{argv} ended with {code}: {said}"
        assert code not in (2, 125) or "necrocode: " in said, f"{argv} ended with {code} and said {said!r}"
    with suppress(NecrocodeError):
        other = FileLedger(scene.root, patience=1.0)
        other.release(other.register(Request("new")))
    for lease in (scene.leases["r2"], scene.leases["r1"]):
        with suppress(NecrocodeError):
            scene.ledger.renew(lease)
    with suppress(NecrocodeError):
        StateDir(scene.root)
    _nothing_else_harmed(scene, before, changed)


def _command(root: Path, argv: list[str]) -> tuple[int, str]:
    out, words = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with redirect_stdout(out), redirect_stderr(words):
        code = cli.main(["--state-dir", str(root), *argv])
    return code, words.getvalue()


def _seen(root: Path) -> dict[Path, bytes]:
    """Every file's bytes, without those that change in peace."""
    return dict(_walk(root))


def _walk(root: Path) -> Iterator[tuple[Path, bytes]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.parent.name in ("live", "bells", "tmp", "events", "mutex") or name in ("lock", "README.md"):
                continue
            with suppress(FileNotFoundError):  # a waiter that was served meanwhile
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
                    yield path, path.read_bytes()


def _nothing_else_harmed(scene: Scene, before: dict[Path, bytes], changed: set[Path]) -> None:
    lost = _dead_by_that(scene, changed)
    for path, data in before.items():
        if path in changed or any(one in path.parents for one in changed) or path.parent == scene.root / "quarantine":
            continue
        if any(path.name.startswith(f"{name}.") or path.name.endswith(f".{name}.json") for name in lost):
            continue
        if path.parent.name == "queue" and not path.exists():
            assert any("w." in name for name in os.listdir(scene.root / "runners")), f"{path.name} is gone, for nothing"
            continue
        assert path.exists(), f"{path} is gone"
        assert path.read_bytes() == data, f"{path} was changed"


def _dead_by_that(scene: Scene, changed: set[Path]) -> set[str]:
    """Whose lifeline is gone counts as dead, and so does its place in line."""
    live = scene.root / "live"
    if changed & {live, scene.root / "runners"}:
        return {"r1", "r2", "f", "w"}
    return {"r1", "w"} if changed & {live / "r1", live / "w"} else set()
