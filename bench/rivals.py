"""What several benchmarks measure in turn: somebody who holds the one slot, and a table that does a lease's work."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

Held = Callable[[], None]
"""Lets go of it."""
Claims = tuple[tuple[str, str], ...]


def by_ledger(root: Path) -> Held:
    ledger = FileLedger(root / "state")
    lease = ledger.register(Request(f"p{os.getpid()}", limit=1), wait=True)
    return lambda: ledger.release(lease)


def by_flock(root: Path) -> Held:
    descriptor = os.open(root / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def by_filelock(root: Path) -> Held:
    from filelock import FileLock

    lock = FileLock(root / "filelock")
    lock.acquire()
    return lock.release


class Sqlite:
    """A lease table with claims and events, checked and changed in one immediate transaction each way."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._db.execute("pragma synchronous=off")

    def make(self) -> Sqlite:
        """The tables, by whoever comes first."""
        self._db.executescript(
            "pragma journal_mode=wal; create table lease (id text primary key, token integer, record text);"
            "create table claim (kind text, path text, owner text); create index by_path on claim (kind, path);"
            "create table event (at real, what text); create table counter (n integer); insert into counter values (0);"
        )
        return self

    def close(self) -> None:
        """Now: let go by the garbage collector, it would take its files away at any later time."""
        self._db.close()

    def take(self, owner: str, claims: Claims) -> None:
        db = self._db
        db.execute("begin immediate")
        db.execute("select count(*) from lease").fetchone()
        for kind, path in claims:
            assert not db.execute("select owner from claim where kind=? and path=?", (kind, path)).fetchone()
        token = db.execute("update counter set n=n+1 returning n").fetchone()[0]
        record = json.dumps({"id": owner, "pid": os.getpid(), "claims": claims, "token": token}, indent=2)
        db.execute("insert into lease values (?,?,?)", (owner, token, record))
        db.executemany("insert into claim values (?,?,?)", [(*claim, owner) for claim in claims])
        db.execute("insert into event values (0, ?)", (json.dumps({"granted": owner, "token": token}),))
        db.execute("commit")

    def give(self, owner: str) -> None:
        db = self._db
        db.execute("begin immediate")
        db.execute("delete from lease where id=?", (owner,))
        db.execute("delete from claim where owner=?", (owner,))
        db.execute("insert into event values (0, ?)", (json.dumps({"released": owner}),))
        db.execute("commit")


def forked(body: Callable[[], object]) -> int:
    """A child that does this; it ends with 0 only when that came to its end."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    finally:
        os._exit(code)
