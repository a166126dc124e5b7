"""Storms of real processes against one state directory, and an oracle that knows nothing of the ledger.

Whoever has been granted a slot or a claim takes the kernel's lock on a file of that name, too, without waiting. If
that fails, two have been granted what only one may have. The lock files lie on higher descriptors than lifelines,
so that a dying process gives them up first. Only for processes without threads: everybody here is forked.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from ring_mutants import RING_MUTANTS

from necrocode import admission, claim
from necrocode.claim import Claim, ClaimIndex
from necrocode.errors import Deadlock, LeaseLost, NecrocodeError, Refused
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.ledger import lifeline, ring
from necrocode.ledger.book import Book
from necrocode.ledger.files import FileLedger
from necrocode.ledger.gate import Gate
from necrocode.ledger.operations import Operations
from necrocode.statedir import to_json
from necrocode.testing import Broken, check

_fork = multiprocessing.get_context("fork")
HIGHER = 700
GRACE = 0.005
"""Seconds that the oracle tries: a killed process may be in the middle of dying."""


class Tally:
    """Counts what many processes say, one byte each: a lock could be held by one that is killed."""

    NAMES = ("granted", "refused", "violation", "deadlock", "extended", "lost")

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        os.write(self._write, bytes([self.NAMES.index(name)]))

    def counts(self) -> Counter[str]:
        with suppress(BlockingIOError):
            while said := os.read(self._read, 65536):
                self._counts.update(self.NAMES[one] for one in said)
        return self._counts


class Oracle:
    """Locks in a folder, one file for each thing that can be held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def take(self, name: str, *, shared: bool = False) -> int | None:
        """A descriptor that holds it, or None when somebody else does."""
        low = os.open(self._folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT, 0o600)
        descriptor = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, HIGHER)
        os.close(low)
        deadline = time.monotonic() + GRACE
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    return None
                time.sleep(0.0005)

    def take_slot(self, limit: int) -> int | None:
        deadline, rounds = time.monotonic() + 4 * GRACE, 0
        # Others come and go while we look: one look at each is no proof, however long we were kept from looking.
        while (rounds := rounds + 1) <= 8 or time.monotonic() < deadline:
            for at in random.sample(range(limit), limit):
                if (descriptor := self.take(f"slot{at}")) is not None:
                    return descriptor
        return None


def race(root: str, claims: tuple[Claim, ...], limit: int | None, winners: int, racers: int, rounds: int) -> int:
    """In each round all ask at once, and exactly `winners` get it; the number of quiet moments checked meanwhile."""
    start, asked, done = (_fork.Barrier(racers) for _ in range(3))
    won = _fork.Array("i", rounds, lock=True)
    oracle = Oracle(Path(root).with_suffix(".oracle"))

    def run(racer: int) -> None:
        ledger = FileLedger(root)
        for turn in range(rounds):
            start.wait(30)
            lease, held = None, None
            with suppress(Refused):
                lease = ledger.register(Request(f"r{racer}", claims, limit=limit))
                with won.get_lock():
                    won[turn] += 1
                held = oracle.take_slot(winners)
                assert held is not None, f"r{racer} was granted in round {turn} what somebody else has"
            asked.wait(30)
            if lease and held is not None:
                os.close(held)
                ledger.release(lease)
            done.wait(30)

    moments = _together([lambda racer=racer: run(racer) for racer in range(racers)], Path(root))
    wrong = {turn: count for turn, count in enumerate(won) if count != winners}
    assert not wrong, f"rounds with another number of winners than {winners}: {wrong}"
    return moments


def crowd(root: str, processes: int, limit: int) -> int:
    """All wait for a slot of one gate, hold it for a moment and leave; the most that were in the queue at once."""
    inside, most = _fork.Value("i", 0), 0
    holder = FileLedger(root).register(Request("holder", limit=limit))

    def visit(at: int) -> None:
        ledger = FileLedger(root, patience=60)
        lease = ledger.register(Request(f"v{at}", limit=limit), wait=True, timeout=60)
        with inside.get_lock():
            inside.value += 1
            assert inside.value <= limit, "one too many"
        with inside.get_lock():
            inside.value -= 1
        ledger.release(lease)

    def look() -> None:
        nonlocal most, holder
        most = max(most, len(os.listdir(f"{root}/queue")))

    def open_up() -> None:
        deadline = time.monotonic() + 20
        while len(os.listdir(f"{root}/queue")) < processes - limit and time.monotonic() < deadline:
            time.sleep(0.005)
            look()

    plays = [lambda at=at: visit(at) for at in range(processes)]
    others = [FileLedger(root).register(Request(f"holder{at}", limit=limit)) for at in range(limit - 1)]

    def meanwhile() -> None:
        open_up()
        for lease in (holder, *others):
            FileLedger(root).release(lease)

    _together(plays, Path(root), meanwhile)
    return most


PATHS = ("a/1", "a/2", "a/b/1", "a/b/2", "c/1", "c/2", "d/1")
PATTERNS = (*PATHS, *PATHS, "a/**", "a/b/**", "c/**", "a/*", "*/1", "**/2", "c/?")
SLOTS = 3


def covered(one: Claim) -> list[str]:
    return [path for path in PATHS if claim.conflict(one._replace(shared=False), Claim.file(path))]


def compared_havoc(root: str, seconds: float, seed: int) -> Counter[str]:
    """The same, and whoever comes in compares what it believes with the listings; a difference is told as trouble."""
    sync = Book.sync

    def sync_and_compare(self: Book) -> bool:
        changed = sync(self)
        for folder in ring.FOLDERS:
            known, there = sorted(self._names(folder)), sorted(os.listdir(f"{self._root}/{folder}"))
            if known != there:
                Path(self._root, "trouble").write_text(f"{folder}: {known} believed, {there} there")
        return changed

    Book.sync = sync_and_compare  # type: ignore[method-assign]
    return havoc(root, seconds, seed)


def havoc(root: str, seconds: float, seed: int, workers: int = 6, *, until_seen: bool = False) -> Counter[str]:
    """Workers register, wait, claim more, wait for more, release; some die of themselves, others are killed at any
    moment, and as many are born. What was counted; `violation` is what the oracle or the checker saw, and ends it
    with `until_seen`."""
    FileLedger(root)
    chance, place = random.Random(seed), Path(root)
    counts: Counter[str] = Counter()
    tally = Tally()
    until, living = time.monotonic() + seconds, []

    def born() -> None:
        number = chance.randrange(1 << 30)
        living.append(_forked(lambda: _work(root, random.Random(number), until, tally), place))

    for _ in range(workers):
        born()
    next_kill = time.monotonic() + 0.02
    while living:
        time.sleep(0.002)
        if tally.counts()["violation"] + counts["violation"] and until_seen:
            _end(living)
            return counts + Counter(violation=1)
        for child in [child for child in living if os.waitpid(child, os.WNOHANG)[0]]:
            living.remove(child)
            if time.monotonic() < until:
                born()
        if time.monotonic() > next_kill and living:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(living), signal.SIGKILL)
            counts["killed"] += 1
            next_kill = time.monotonic() + chance.random() * 0.04
        try:
            counts["moments"] += check(place, tries=1)
        except Broken as error:
            counts["violation"] += 1
            (place / "trouble").write_text(str(error))
    counts += tally.counts()
    _recover(root, counts)
    return counts


def _end(children: list[int]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _recover(root: str, counts: Counter[str]) -> None:
    """Nothing may be left, and every slot be free, as soon as somebody looks."""
    ledger = FileLedger(root)
    ledger.sweep()
    counts["left"] = sum(
        len(os.listdir(f"{root}/{folder}")) for folder in ("runners", "queue", "fenced", "live", "bells")
    )
    leases = [ledger.register(Request(f"z{at}", limit=SLOTS)) for at in range(SLOTS)]
    for lease in leases:
        ledger.release(lease)


def _work(root: str, chance: random.Random, until: float, tally: Tally) -> None:
    ledger, oracle = FileLedger(root), Oracle(Path(root).with_suffix(".oracle"))
    turn = 0
    while time.monotonic() < until:
        turn += 1
        wanted = tuple({_claim(chance) for _ in range(chance.randrange(4))})
        request = Request(f"p{os.getpid()}-{turn}", wanted, limit=SLOTS, priority=chance.choice([0, 0, 0, 30]))
        try:
            lease = ledger.register(request, wait=chance.random() < 0.6, timeout=chance.choice([0.05, 0.5]))
        except Refused:
            tally.add("refused")
            continue
        tally.add("granted")
        held: list[int] = []
        try:
            _hold(ledger, lease, oracle, chance, held, tally)
        except LeaseLost:
            tally.add("lost")
        for descriptor in held:
            os.close(descriptor)
        if chance.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        with suppress(LeaseLost):
            ledger.release(lease)


def _hold(
    ledger: FileLedger, lease: Lease, oracle: Oracle, chance: random.Random, held: list[int], tally: Tally
) -> None:
    slot = oracle.take_slot(SLOTS)
    held += [slot] if slot is not None else _violated(tally)
    mine = _occupy(oracle, lease.claims, frozenset(), held, tally)
    time.sleep(chance.random() * 0.004)
    ledger.renew(lease)
    if chance.random() < 0.4:
        more = _claim(chance)
        with suppress(Refused):
            try:
                ledger.claim(lease, [more], wait=chance.random() < 0.5, timeout=0.3)
            except Deadlock:
                tally.add("deadlock")
                return
            tally.add("extended")
            _occupy(oracle, (more,), mine, held, tally)


def _occupy(
    oracle: Oracle, claims: tuple[Claim, ...], mine: frozenset[str], held: list[int], tally: Tally
) -> frozenset[str]:
    exclusive: dict[str, bool] = {}
    for one in claims:
        for path in covered(one):
            exclusive[path] = exclusive.get(path, False) or not one.shared
    for path in exclusive.keys() - mine:
        taken = oracle.take(path, shared=not exclusive[path])
        held += [taken] if taken is not None else _violated(tally)
    return mine | exclusive.keys()


def _violated(tally: Tally) -> list[int]:
    tally.add("violation")
    return []


def _claim(chance: random.Random) -> Claim:
    return Claim.file(chance.choice(PATTERNS), shared=chance.random() < 0.35)


def zombies(root: str) -> Counter[str]:
    """Leases that were revoked while their holders slept go on as if nothing had happened; what they were allowed."""
    counts: Counter[str] = Counter()
    first, second = FileLedger(root), FileLedger(root)
    for at in range(20):
        old = first.register(Request(f"old{at}", (Claim.file("x"), Claim.workspace("/w"))))
        second.fence(f"old{at}")
        new = second.register(Request(f"new{at}", (Claim.file("x"),)))
        for call in (lambda lease: first.claim(lease, [Claim.file("y")]), _publish_by(first), first.renew):
            with suppress(NecrocodeError):
                call(old)
                counts["violation"] += 1
        try:
            second.claim(new, [Claim.workspace("/w/sub")])
            counts["violation"] += 1
        except Refused:
            counts["refused"] += 1
        for ledger, lease in ((first, old), (second, new)):
            with suppress(NecrocodeError):
                ledger.release(lease)
    return counts


def _publish_by(ledger: FileLedger) -> Callable[[Lease], None]:
    def publish(lease: Lease) -> None:
        with ledger.publishing(lease):
            pass

    return publish


def meddle(root: str, seconds: float, seed: int, *, until_seen: bool = False) -> Counter[str]:
    """Workers want one file, which somebody who knows no gate takes and gives back by hand, between their passes."""
    place, chance, until, tally = Path(root), random.Random(seed), time.monotonic() + seconds, Tally()
    ledger, oracle, counts = FileLedger(root), Oracle(Path(root).with_suffix(".oracle")), Counter[str]()

    def work() -> None:
        mine = FileLedger(root)
        while time.monotonic() < until:
            try:
                lease = mine.register(Request(f"p{os.getpid()}", (Claim.file("a/1"),)))
            except Refused:
                tally.add("refused")
                continue
            tally.add("granted")
            held = [oracle.take("a_1")]
            if held == [None]:
                tally.add("violation")
            time.sleep(chance.random() * 0.001)
            for descriptor in filter(None, held):  # before the lease: whoever has that next must not find this held
                os.close(descriptor)
            mine.release(lease)

    children = [_forked(work, place) for _ in range(3)]
    gate = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    while time.monotonic() < until and not (until_seen and (tally.counts()["violation"] or _has_trouble(place))):
        fcntl.flock(gate, fcntl.LOCK_EX)
        life = None if os.listdir(place / "runners") else _placed(place, f"hand.{counts['placed'] + 1}.0.json")
        taken = None if life is None else oracle.take("a_1")
        fcntl.flock(gate, fcntl.LOCK_UN)
        time.sleep(3 * GRACE)  # longer than whoever is wrongly granted it tries to take it
        if life is not None:
            counts["placed"] += 1
            fcntl.flock(gate, fcntl.LOCK_EX)
            (place / "runners" / f"hand.{counts['placed']}.0.json").unlink()
            os.unlink(place / "live" / "hand")
            for descriptor in filter(None, (life, taken)):
                os.close(descriptor)
            fcntl.flock(gate, fcntl.LOCK_UN)
            # From now on nobody may believe that it is still held.
            ledger.release(ledger.register(Request("next", (Claim.file("hand/was/here"),))))
            counts["stale"] += "hand" in ledger.view.standing
    _end(children)
    counts["violation"] += _has_trouble(place)  # somebody could not even go on
    return counts + tally.counts()


def _has_trouble(place: Path) -> bool:
    return (place / "trouble").exists()


def _placed(place: Path, name: str) -> int:
    life = os.open(place / "live" / "hand", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(life, fcntl.LOCK_EX)
    os.write(life, f"{time.monotonic():017.6f} - {0:017.6f}\n".encode())
    record = RunnerInstance("hand", "", "", "", datetime.now(UTC), datetime.now(UTC), slot=False)
    data = to_json(record.with_claims((Claim.file("a/1"),)).to_dict())
    (place / "tmp" / name).write_bytes(data)
    (place / "tmp" / name).rename(place / "runners" / name)
    return life


MUTANTS = {
    "no lock": "havoc",
    "no limit": "havoc",
    "flaky liveness": "havoc",
    "wild claims ignored": "havoc",
    "no token check": "zombies",
    "sticky claims freed": "zombies",
    "the ring loses entries": "havoc",
    "the ring's counter stands still": "havoc",
    "the ring's end unnoticed": "havoc",
    "hands unnoticed": "meddle",
}
"""Kernels that are broken on purpose, and the storm that must see it."""


@contextmanager
def broken(how: str) -> Iterator[None]:
    """One of MUTANTS, in this process and all that it forks; "" breaks nothing."""
    if how == "no lock":
        Gate._take = lambda self, *_: setattr(self, "_inside", self._open()) or True  # type: ignore[method-assign]
    elif how == "no limit":
        admission.View.room = lambda self, limit: None  # type: ignore[method-assign]
    elif how == "flaky liveness":
        probe = lifeline._probe
        lifeline._probe = lambda path: None if random.random() < 0.2 else probe(path)
    elif how == "no token check":
        Operations._mine = lambda self, lease: self.view.standing[lease.runner_id]  # type: ignore[method-assign]
    elif how == "wild claims ignored":
        conflicts = ClaimIndex.conflicts
        ClaimIndex.conflicts = (  # type: ignore[method-assign]
            lambda self, owner, one: (hit for hit in conflicts(self, owner, one) if "*" not in hit[1].path)
        )
    elif how in RING_MUTANTS:
        RING_MUTANTS[how]()
    elif how == "sticky claims freed":
        admission.Standing.effective = property(  # type: ignore[method-assign,assignment]
            lambda self: () if self.fenced else self.claims
        )
    yield


def storm_of(how: str, root: str, seconds: float, seed: int) -> int:
    """What the storm saw of a kernel that is broken in this way."""
    with broken(how):
        try:
            if MUTANTS[how] == "zombies":
                return zombies(root)["violation"]
            if MUTANTS[how] == "meddle":
                return meddle(root, seconds, seed, until_seen=True)["violation"]
            return havoc(root, seconds, seed, until_seen=True)["violation"]
        except Broken:
            return 1  # the checker says so


def _together(plays: list[Callable[[], None]], root: Path, meanwhile: Callable[[], None] = lambda: None) -> int:
    """All of these at once, each in a process of its own, while the checker looks; the quiet moments it had."""
    FileLedger(root)
    children, moments = [_forked(play, root) for play in plays], 0
    meanwhile()
    deadline = time.monotonic() + 90
    try:
        while children:
            assert time.monotonic() < deadline, f"{len(children)} never came to an end"
            moments += check(root, tries=1)
            for child in list(children):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    children.remove(child)
                    assert status == 0, _trouble(root)
            time.sleep(0.002)
    finally:
        _end(children)
    assert not (root / "trouble").exists(), _trouble(root)
    return moments


def _trouble(root: Path) -> str:
    return (root / "trouble").read_text() if (root / "trouble").exists() else "it said nothing"


def _forked(play: Callable[[], None], root: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        random.seed(os.getpid())
        play()
        code = 0
    except BaseException:  # noqa: BLE001 - a child must not return into its parent's code
        (root / "trouble").write_text(traceback.format_exc())
    finally:
        os._exit(code)
