"""ReportStore: reports on disk as they come, for a run that is resumed and for runs in several processes at once.

Each report is a file of one JSON line, written whole or not at all; a repetition that is under way is a claim of the
store's own ledger, which ends with the process that holds it. So nothing is repeated and nothing is lost: what has a
report is done, what has a living holder is being done, and the rest is free.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from necrocode import statedir
from necrocode.benchmark.report import TaskExecutionStatus
from necrocode.claim import Claim
from necrocode.errors import ConfigError, LeaseLost, Refused, StateUnreadable
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger


class ReportStore:
    """The reports of one benchmark in a directory, which is made when it is missing.

    Raises StateUnusable when it cannot be used."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        with statedir.told(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / "reports").mkdir(exist_ok=True)
        self._ledger = FileLedger(self.root / "state")
        self._count = 0

    def belongs_to(self, name: str) -> None:
        """Say which benchmark this is for. Raises ConfigError when it has reports of another."""
        path = self.root / "benchmark.json"
        if not path.exists():
            self._ledger.state.write(path, statedir.to_json({"benchmark": name}), durable=True)
        found = statedir.read_json(path).get("benchmark")
        if found != name:
            raise ConfigError(f"has reports of {found}, not of {name}", where=str(self.root), hint="name another store")

    def read(self, task_id: str, repeat_idx: int) -> dict[str, Any] | None:
        """The report of one repetition, if there is one that counts: after an infrastructure failure there is not.
        One that cannot be read is put aside, and there is none."""
        path = self._path(task_id, repeat_idx)
        try:
            report = statedir.read_json(path)
        except FileNotFoundError:
            return None
        except StateUnreadable:
            self._ledger.state.quarantine(path)
            return None
        counts = isinstance(report, dict) and report.get("status") != TaskExecutionStatus.INFRASTRUCTURE_ERROR
        return report if counts else None

    def reports(self) -> Iterator[dict[str, Any]]:
        """All reports, in the order of their file names."""
        for path in sorted((self.root / "reports").glob("*.json")):
            with suppress(StateUnreadable, FileNotFoundError):
                yield statedir.read_json(path)

    def write(self, report: Mapping[str, Any]) -> None:
        """Keep a report; it is on the disk when this returns. What JSON has no word for is kept as text.

        Raises StateUnusable when it cannot be written; nothing is left then."""
        path = self._path(str(report["task_id"]), int(report["repeat_idx"]))
        self._ledger.state.write(path, json.dumps(plain(report)).encode() + b"\n", durable=True)

    def claim(self, task_id: str, repeat_idx: int, *, patience: float = 0.0) -> Lease | None:
        """Take a repetition on, waiting `patience` seconds at most for whoever has it; None when that one keeps it."""
        self._count += 1
        name = f"{os.getpid()}-{os.urandom(3).hex()}-{self._count}"
        claim = Claim("repetition", self._path(task_id, repeat_idx).stem)
        request = Request(name, (claim,), task_id=task_id, slot=False)
        try:
            return self._ledger.register(request, wait=patience > 0, timeout=patience or None)
        except Refused:
            return None

    def renew(self, lease: Lease) -> None:
        """A sign of life, at least once in five minutes."""
        with suppress(LeaseLost):  # then somebody else does the same; whichever report comes last counts
            self._ledger.renew(lease)

    def give_back(self, lease: Lease) -> None:
        """The repetition has its report, or is free for others."""
        with suppress(LeaseLost):
            self._ledger.release(lease)

    def _path(self, task_id: str, repeat_idx: int) -> Path:
        name = quote(task_id, safe="").replace(".", "%2E")
        if len(name) > 150:
            name = f"{name[:100]}-{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"
        return self.root / "reports" / f"{name}.{repeat_idx}.json"


def plain(value: Any, depth: int = 0) -> Any:
    """The nearest that JSON can say; what it cannot, and what is nested deeper than 50, becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth < 50:
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain(item, depth + 1) for item in value]
    return repr(value)[:10_000]
