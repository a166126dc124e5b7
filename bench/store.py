"""Results that are kept, and what README shows of them.

A result is one file in bench/results: when, on which machine, of which commit, and every table. README's figures are
those of the newest ones, written between two marks by `python -m bench readme`, which draws docs/figures too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import curves
from bench.compare import Row, Table, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
FIGURES = ROOT / "docs" / "figures"
_MARKED = re.compile(r"(<!-- made by `python -m bench readme` -->\n).*?(<!-- end -->\n)", re.DOTALL)

SHOWN = (
    ("startup", "commands", "necrocode status, nothing there", "import click", "`necrocode status`, nothing there"),
    ("ledger", "register and release, 10 live", "necrocode", "SQLite", "register and release, 10 live leases"),
    ("ledger", "register and release, 1000 live", "necrocode", "SQLite", "the same, 1 000 live"),
    ("ledger", "register and release, 1000 live", "necrocode", "filelock", "the same, 1 000 live"),
    ("contention", "16 processes", "necrocode", "SQLite", "the same by 16 processes at once"),
    ("contention", "16 processes", "necrocode", "filelock", "the same by 16 processes at once"),
    ("handover", "release to the waiter running", "necrocode", "flock(2)", "from a release to the next waiter running"),
    ("handover", "release to the waiter running", "necrocode", "filelock", "from a release to the next waiter running"),
    ("waiters", "worst wait", "necrocode", "flock(2)", "the longest wait of 50 in line"),
    ("waiters", "worst wait", "necrocode", "filelock", "the longest wait of 50 in line"),
    ("noop", "1000 commands, 8 at once", "necrocode run", "xargs -P", "1 000 commands that do nothing, 8 at once"),
    ("noop", "1000 commands, 8 at once", "necrocode run", "GNU parallel", "1 000 commands that do nothing, 8 at once"),
    ("noop", "1000 commands, 8 at once", "necrocode run", "make -j", "1 000 commands that do nothing, 8 at once"),
    ("workspaces", "one workspace", "necrocode", "git", "a workspace of 10 000 files"),
    ("workspaces", "8 workspaces", "necrocode", "git", "eight of them"),
    (
        "faces",
        "10000 calls that do nothing, 50",
        "WorkerPool",
        "ThreadPoolExecutor",
        "10 000 calls through a worker pool",
    ),
    (
        "faces",
        "10000 coroutines that do nothing, 100",
        "ExecutionState",
        "asyncio.gather",
        "10 000 coroutines as a group",
    ),
)
"""Bench, how its title begins, our row, the peer's row, and what README calls it."""


def save(tables: Iterable[Table], now: datetime) -> Path:
    """The tables as the file of bench/results that began then."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    told = [{**table._asdict(), "rows": [row._asdict() for row in table.rows]} for table in tables]
    facts = {"at": now.isoformat(timespec="seconds"), "machine": machine(), "commit": commit, "tables": told}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{now:%Y-%m-%d-%H%M}.json"
    file.write_text(json.dumps(facts, indent=1) + "\n")
    return file


def kept() -> list[Path]:
    """All results, the newest first. Ends the program when there is none."""
    found = sorted(RESULTS.glob("*.json"), reverse=True)
    return found or sys.exit("no result is kept yet: python -m bench --save")


def latest() -> dict[str, Path]:
    """For each benchmark the newest result that has it: not everything is measured every time."""
    return {table.bench: file for file in reversed(kept()) for table in loaded(file)[1]}


def loaded(file: Path) -> tuple[dict[str, Any], tuple[Table, ...]]:
    """What a result says of itself, and its tables."""
    facts = json.loads(file.read_text())
    tables = (Table(**{**one, "rows": tuple(Row(**row) for row in one["rows"])}) for one in facts["tables"])
    return facts, tuple(tables)


def readme(*, check: bool = False) -> bool:
    """Whether README and the curves showed the newest results already; unless it is only to be checked, they do
    now."""
    page = ROOT / "README.md"
    block = "".join(f"{line}\n" for line in _block())
    wanted = {page: _MARKED.sub(lambda match: match[1] + block + match[2], page.read_text())}
    tables = [table for name, file in latest().items() for table in loaded(file)[1] if table.bench == name]
    wanted |= {FIGURES / curves.file_name(curve): curves.svg(curve) for curve in curves.curves(tables)}
    stale = {file: text for file, text in wanted.items() if not file.exists() or file.read_text() != text}
    if not check:
        FIGURES.mkdir(exist_ok=True)
        for file, text in stale.items():
            file.write_text(text)
    return not stale


def _block() -> Iterator[str]:
    files = latest()
    results = {file: loaded(file) for file in files.values()}
    yield "| what | necrocode | against | times as long |"
    yield "|---|---|---|---|"
    shown = []
    for bench, title, ours, theirs, what in SHOWN:
        for table in results[files[bench]][1] if bench in files else ():
            if table.bench == bench and table.title.startswith(title):
                shown.append(files[bench])
                yield from _line(table, ours, theirs, what)
    yield ""
    yield "Medians of interleaved runs: the ratios hold, the times are those of a busy machine where its load says so."
    yield ""
    for file in dict.fromkeys(shown):
        facts, name = results[file][0], file.relative_to(ROOT)
        parts = ", ".join(part for part, its in files.items() if its == file)
        yield f"- {parts}: [{file.stem}]({name}), {facts['machine']}, commit {facts['commit']}"


def _line(table: Table, ours: str, theirs: str, what: str) -> Iterator[str]:
    mine = next((row for row in table.rows if row.name.startswith(ours)), None)
    peer = next((row for row in table.rows if row.name.startswith(theirs)), None)
    if mine and peer and peer.p50:
        yield f"| {what} | {_time(mine.p50)} | {peer.name}: {_time(peer.p50)} | {mine.p50 / peer.p50:.2g} |"


def _time(seconds: float) -> str:
    scale, unit = (1e6, "us") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1, "s")
    return f"{seconds * scale:.3g} {unit}"
