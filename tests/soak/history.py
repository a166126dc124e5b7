"""What happened in a soak, a line of JSON each, written by all its processes; and the checker that reads it afterwards.

The checker knows nothing of the ledger and looks at nothing but the lines, so a history that is kept can be checked
again anywhere: `python -m tests.soak --check FILE`. The kinds of line:

    injected fault count    so many faults of this kind were injected, and what follows was looked at each time
    broken why              a look that saw something wrong
    limit key count         so many may have this key at once (unless said: one)
    granted key who / ended key who
                            who has the key; `granted` is written after it was given, `ended` before it is given back
    dying who               written before who is killed: what it has counts as held only until then, and what it
                            may be given after this line not at all. Who is killed needs a name of its own: numbers
                            of processes come again
    acked key               a change that was answered for, so it must be found
    found key               it was
    published key who       a result; there must be one of each key
    note text               for whoever reads
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_BEGIN = '{"ns": '


class History:
    """Appends to one file; each line is one write, so processes may share it and be killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def injected(self, fault: str, count: int = 1) -> None:
        self._add("injected", fault=fault, count=count)

    def broken(self, why: str) -> None:
        self._add("broken", why=why)

    def limit(self, key: str, count: int) -> None:
        self._add("limit", key=key, count=count)

    def granted(self, key: str, who: str) -> None:
        self._add("granted", key=key, who=who)

    def ended(self, key: str, who: str) -> None:
        self._add("ended", key=key, who=who)

    def dying(self, who: str) -> None:
        self._add("dying", who=who)

    def acked(self, key: str) -> None:
        self._add("acked", key=key)

    def found(self, key: str) -> None:
        self._add("found", key=key)

    def published(self, key: str, who: str) -> None:
        self._add("published", key=key, who=who)

    def note(self, text: str) -> None:
        self._add("note", text=text)

    def _add(self, kind: str, **facts: object) -> None:
        os.write(self._file, (json.dumps({"ns": time.monotonic_ns(), "kind": kind, **facts}) + "\n").encode())


class Verdict(NamedTuple):
    injected: Counter[str]
    """How many faults of each kind."""
    wrong: list[str]
    """What broke a promise; nothing, in a good history."""


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history; of one whose writer was killed in the middle, what the next one wrote after it."""
    with open(path) as file:
        for text in file:
            if (at := text.rfind(_BEGIN)) >= 0 and text.endswith("\n"):
                yield json.loads(text[at:])


def verdict(lines: Iterable[dict[str, Any]]) -> Verdict:
    """Check a whole history; its lines may be out of order by as much as their writers were delayed."""
    told = sorted(lines, key=lambda line: int(line["ns"]))
    injected = Counter[str]()
    for line in told:
        if line["kind"] == "injected":
            injected[line["fault"]] += line["count"]
    wrong = [str(line["why"]) for line in told if line["kind"] == "broken"]
    return Verdict(injected, [*wrong, *_held_twice(told), *_lost(told), *_published_twice(told)])


def _held_twice(told: list[dict[str, Any]]) -> Iterator[str]:
    holders: defaultdict[str, list[str]] = defaultdict(list)
    limits: dict[str, int] = {}
    held: defaultdict[str, list[str]] = defaultdict(list)
    dead: set[str] = set()
    for line in told:
        kind, key, who = line["kind"], line.get("key", ""), line.get("who", "")
        if kind == "limit":
            limits[key] = line["count"]
        elif kind == "granted" and who not in dead:
            if len(holders[key]) >= limits.get(key, 1):
                yield f"{key}: granted to {who} while {', '.join(holders[key])} had it"
            holders[key].append(who)
            held[who].append(key)
        elif kind == "ended" and who in holders[key]:
            holders[key].remove(who)
            held[who].remove(key)
        elif kind == "dying":
            dead.add(who)
            for one in held.pop(who, ()):
                holders[one].remove(who)


def _lost(told: list[dict[str, Any]]) -> Iterator[str]:
    found = {line["key"] for line in told if line["kind"] == "found"}
    yield from (f"{line['key']}: lost" for line in told if line["kind"] == "acked" and line["key"] not in found)


def _published_twice(told: list[dict[str, Any]]) -> Iterator[str]:
    by: dict[str, str] = {}
    for line in told:
        if line["kind"] == "published":
            if line["key"] in by:
                yield f"{line['key']}: published by {by[line['key']]} and by {line['who']}"
            by[line["key"]] = line["who"]
