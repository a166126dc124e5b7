"""The command line under strace: each system call with which it touches the state directory, killed or refused.

A process that has loaded all of necrocode forks one child per case, strace takes hold of it, and it runs one command
line. So a case takes hundredths of a second instead of tenths; that Python can be killed while it loads is left to
`tests/faults/test_command_line.py`. Only faults of which strace says that it injected them are counted."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from necrocode import cli
from necrocode.claim import Claim
from necrocode.errors import NecrocodeError
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.testing import Broken, check, forked, wait_for
from tests.soak.part import Part, Soak

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("openat", "write", "pwrite64", "rename", "unlink", "unlinkat", "mkdir", "mknodat", "link", "linkat", "flock",
         "fsync", "fchmod", "ftruncate", "utimensat")  # fmt: skip
TOLD = {0, 1, 2, 75, 120, 124, 125, 126, 127}
"""Exit codes that mean something."""
FAULTS = {
    "kill -9": "signal=KILL:when={at}",
    "ENOSPC": "error=ENOSPC:when={at}",
    "EIO": "error=EIO:when={at}",
    "EACCES": "error=EACCES:when={at}",
    "EMFILE": "error=EMFILE:when={at}",
    "ENOMEM": "error=ENOMEM:when={at}",
    "EROFS": "error=EROFS:when={at}",
    "ENOSPC lasting": "error=ENOSPC:when={at}+",
}
_MARKER = "sched_rr_get_interval"
"""A call that nobody makes and strace answers wrongly: so a child sees that strace has taken hold of it."""
_UNTRACED, _MISDONE = 98, 99
_PATIENCE = 30.0


class Scene:
    """One state directory with what is in it, and what was started for it."""

    def __init__(self, place: Path, where: str, template: Path | None = None) -> None:
        self.place, self.root, self.output = place, place / "state", place / "output"
        self.others: list[int] = []
        self.ledger: FileLedger | None = None
        place.mkdir()
        (place / "tasks.json").write_text('{"task": [{"id": "t", "command": ["true"]}]}')
        if where != "new" and template:
            shutil.copytree(template, self.root)
            self.ledger = FileLedger(self.root)
            self.held = self.ledger.register(Request("held", (Claim.file("held"),)))

    def other(self, play: Callable[[], object] = lambda: None) -> int:
        """Another process, which lives until the scene ends."""
        self.others.append(forked(play, self.place / "trouble", hang=True))
        return self.others[-1]

    def tear(self) -> None:
        """As if the last one inside the gate had died there."""
        with open(self.root / "lock", "r+b") as lock:
            generation = int(lock.read()[64:160].split()[1])
            lock.seek(64)
            lock.write(f"held {generation + 1} op=x".ljust(95).encode() + b"\n")

    def argv(self, text: str) -> list[str]:
        words = {"place": self.place, "owner": self.others[0] if self.others else os.getpid()}
        return ["--state-dir", str(self.root), *(word.format(**words) for word in text.split())]

    def end_others(self) -> None:
        for child in self.others:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self.others.clear()

    def goes_on(self) -> str:
        """What is wrong afterwards; "" when the next one finds all in order."""
        try:
            ledger = FileLedger(self.root)
            if self.ledger:
                self.ledger.renew(self.held)
            check(self.root)
            ledger.release(ledger.register(Request("after", limit=9), wait=True, timeout=30))
            ledger.sweep()
            check(self.root)
            if self.ledger:
                self.ledger.release(self.held)
        except (NecrocodeError, Broken) as error:
            return f"{type(error).__name__}: {error}"
        return ""


def _victim(scene: Scene) -> None:
    scene.other(lambda: FileLedger(scene.root).register(Request("victim", (Claim.file("v"),))))
    wait_for(lambda: any(name.startswith("victim.") for name in os.listdir(scene.root / "runners")))


def _owner(scene: Scene) -> None:
    scene.other()


def _claimed(scene: Scene) -> None:
    scene.other()
    _run(scene, "claim --no-wait --pid {owner} --name c file:c port:8080")


class Command(NamedTuple):
    """One command line: `{place}` is the folder around its state directory, `{owner}` a process to hold something
    for."""

    argv: str
    ready: Callable[[Scene], None] = lambda scene: None
    """Makes what has to be there before; only where there is a state directory."""
    forks: bool = False
    """Whether a child of it does the work, which is traced, too, then."""
    where: tuple[str, ...] = ("new", "used")
    """In what directories: a new one, one that was used, one whose gate was left by one who died inside."""
    step: int = 1
    """Every so many-th call of it is taken: of those that take long, and mostly read."""


_USED, _ALL = ("used", "torn"), ("new", "used", "torn")
COMMANDS = {
    "status": Command("status", where=_USED),
    "config set": Command("config set limit 5", where=_ALL),
    "exec": Command("exec --no-wait --file a.py -- true", where=_ALL),
    "claim": Command("claim --no-wait --pid {owner} --name c file:c port:8080", _owner, forks=True, where=_ALL),
    "release": Command("release c", _claimed, where=_USED),
    "stop": Command("stop victim", _victim, where=_USED),
    "gc": Command("gc --yes --older 0d", where=_USED),
    "why": Command("why t", where=_USED),
    "events": Command("events", where=("used",)),
    "doctor": Command("doctor --fix", where=_USED, step=5),
    "run": Command("run {place}/tasks.json --workspace none", step=2),
}


class Case(NamedTuple):
    name: str
    where: str
    call: str
    at: int
    """The fault hits the so many-th call of that name."""
    fault: str

    def __str__(self) -> str:
        return f"{self.name} in a {self.where} directory, {self.fault} at {self.call} {self.at}"


def play(soak: Soak) -> None:
    _load()
    os.chdir(soak.place)
    os.environ.update(HOME=str(soak.place), PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
    template, numbers = _template(soak.place / "template"), iter(range(1 << 30))

    def scene(name: str, where: str) -> Scene:
        made = Scene(soak.place / f"scene{next(numbers)}", where, template)
        COMMANDS[name].ready(made)
        if where == "torn":
            made.tear()
        return made

    cases = []
    for name, command in COMMANDS.items():
        for where in command.where:
            points = _points(scene(name, where), command)
            soak.history.note(f"{name} in a {where} directory: {len(points)} calls, each {command.step}. taken")
            cases += [Case(name, where, *point, fault) for point in points[:: command.step] for fault in FAULTS]
    soak.history.note(f"{len(cases)} cases in all")
    for case in soak.chance().sample(cases, min(soak.wanted, len(cases))):
        hit, wrong = _played(scene(case.name, case.where), case)
        if wrong:
            soak.history.broken(f"{case}: {wrong}")
        if hit:
            soak.history.injected("kill -9" if case.fault == "kill -9" else "error")


def _load() -> None:
    for verb in cli.VERBS:
        importlib.import_module(f"necrocode.commands.{cli._MODULES.get(verb, verb)}")
    gc.freeze()


def _template(root: Path) -> Path:
    """A directory that was used: a finished run, a runner and a waiter that are dead, litter."""
    scene = Scene(root.with_name("before"), "new")
    ledger = FileLedger(scene.root)
    ledger.configure(limit=8)
    assert _run(scene, "run {place}/tasks.json --workspace none -q") == 0, scene.output.read_text()
    scene.other(lambda: FileLedger(scene.root).register(Request("dead", (Claim.file("d"),))))
    wait_for(lambda: os.listdir(scene.root / "runners"))
    scene.other(lambda: FileLedger(scene.root).register(Request("deadtoo", (Claim.file("d"),)), wait=True))
    wait_for(lambda: os.listdir(scene.root / "queue"))
    scene.end_others()
    (scene.root / "tmp" / "litter").touch()
    os.utime(scene.root / "tmp" / "litter", (1, 1))
    for bell in (scene.root / "bells").iterdir():  # a FIFO cannot be copied
        bell.unlink()
    os.rename(scene.root, root)
    return root


def _points(scene: Scene, command: Command) -> list[tuple[str, int]]:
    """The calls that name something of the scene, by name and place among those of that name, of any process of it."""
    log = scene.place / "log"
    code = _run(
        scene, command.argv, ("-y", "-o", str(log), "-e", f"trace={_names((*CALLS, _MARKER))}"), forks=command.forks
    )
    assert code in TOLD, (command, code, scene.output.read_text())
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], None] = {}
    for pid, call, rest in _calls(log):
        counts[pid, call] += 1
        if f"{scene.place}/" in rest:
            found[call, counts[pid, call]] = None
    _ended(scene)
    return list(found)


def _calls(log: Path) -> Iterator[tuple[str, str, str]]:
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d*) *(\w+)\((.*)", line):
            yield match[1], match[2], match[3]


def _names(calls: tuple[str, ...]) -> str:
    return ",".join(f"?{call}" for call in calls)  # not every machine has them all


def _played(scene: Scene, case: Case) -> tuple[bool, str]:
    """Whether the fault hit, and what was wrong then."""
    log, command = scene.place / "log", COMMANDS[case.name]
    injection = f"inject={case.call}:{FAULTS[case.fault].format(at=case.at)}"
    trace = f"trace={_names((case.call, _MARKER))}"
    code = _run(scene, command.argv, ("-o", str(log), "-e", trace, "-e", injection), forks=command.forks)
    sign = "killed by SIGKILL" if case.fault == "kill -9" else "(INJECTED)"
    hit = any(sign in line and _MARKER not in line for line in log.read_text(errors="replace").splitlines())
    wrong = _badly_told(code, scene.output.read_text(errors="replace"), case)
    return hit, wrong or _ended(scene)


def _ended(scene: Scene) -> str:
    scene.end_others()
    wrong = scene.goes_on()
    shutil.rmtree(scene.place, ignore_errors=True)
    return wrong


def _badly_told(code: int, output: str, case: Case) -> str:
    if code == -signal.SIGKILL and case.fault == "kill -9":
        return ""
    if code not in TOLD or "should not have happened" in output or "Traceback" in output:
        return f"it ended with {code}: {output}"
    unheard = case.call == "write"  # what was refused may have been the word itself
    return f"it ended with {code} and no word" if code and not output and not unheard else ""


def _run(scene: Scene, text: str, strace: tuple[str, ...] = (), *, forks: bool = False) -> int:
    """The exit code of one command line in a forked child, minus the signal that ended it."""
    child = forked(partial(_perform, scene, scene.argv(text), traced=bool(strace)), scene.place / "trouble")
    tracer = None
    if strace:
        argv = ["strace", "-qq", *("-f",) * forks, "-p", str(child), "-e", f"inject={_MARKER}:error=EXDEV", *strace]
        tracer = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = _code_of(child)
    if tracer:
        if forks:  # it is traced until it ends, which it does with the one that it holds something for
            scene.end_others()
        tracer.wait(_PATIENCE)
    return code


def _code_of(child: int) -> int:
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        os.kill(child, signal.SIGKILL)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _perform(scene: Scene, argv: list[str], *, traced: bool) -> int:
    output = os.open(scene.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if traced and not _is_held():
        return _UNTRACED
    code = _MISDONE
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    try:
        sys.stdout.flush()
    except OSError:
        return 120  # as Python itself ends when it cannot write what it still has
    return code


def _is_held() -> bool:
    """Wait until strace answers our calls."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & (1 << 64) - 1), 0, 0, 0)  # PR_SET_PTRACER: anybody may
    deadline = time.monotonic() + _PATIENCE / 2
    while time.monotonic() < deadline:
        try:
            os.sched_rr_get_interval(0)
        except OSError:
            return True
        time.sleep(0.001)
    return False


def _lacking() -> str:
    return "" if shutil.which("strace") else "strace (apt install strace)"


PART = Part(
    "the command line under strace, each of its system calls on the state killed or refused: it tells so, whatever "
    "others hold stays theirs, the next one goes on",
    f"faults ({len(COMMANDS)} commands: calls killed, six errors, ENOSPC from there on; in forks of a loaded process)",
    10_200,
    play,
    _lacking,
)
