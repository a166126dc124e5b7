"""What a granted set of claims is, as values: the request, the record on disk, its holder, the live handle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from necrocode.claim import Claim
from necrocode.errors import ConfigError

SCHEMA = 1
PRIORITIES = range(-50, 50)

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def checked_id(text: str) -> str:
    """The id itself, or ConfigError: ids become file names, so letters, digits, `.`, `_` and `-`, at most 128."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise ConfigError(
            f"{text!r} cannot be an id", hint="use up to 128 letters, digits, '.', '_' and '-', not starting with '.'"
        )
    return text


class Identity(NamedTuple):
    """Who a process is, beyond its pid: what makes it the same process for everybody who looks, now and later."""

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: int
    time_namespace: int
    host: str
    user: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Identity:
        """From the same keys; unknown ones are ignored. Raises KeyError or TypeError for what names no process."""
        numbers = (_whole(data[field]) for field in ("pid", "start_ticks", "pid_namespace", "time_namespace"))
        pid, ticks, pid_namespace, time_namespace = numbers
        boot, host, user = (_text(data[field]) for field in ("boot_id", "host", "user"))
        return cls(pid, ticks, boot, pid_namespace, time_namespace, host, user)


class Request(NamedTuple):
    """What a runner asks of the ledger: everything or nothing of `claims`, and one slot unless `slot` is False.

    `limit` and `heartbeat_timeout` (seconds) are the asker's own; the host's limit applies as well. `priority`
    goes from -50 to 49, higher first. `tree` keeps the lease alive until the last process that inherited its
    lifeline has ended; otherwise it ends with this process."""

    runner_id: str
    claims: tuple[Claim, ...] = ()
    task_id: str = ""
    spec_name: str = ""
    workspace_path: str = ""
    limit: int | None = None
    priority: int = 0
    heartbeat_timeout: float = 300.0
    slot: bool = True
    tree: bool = False
    details: Mapping[str, str] = {}

    def checked(self) -> Request:
        """This request, or ConfigError for what cannot be meant, or could not be read again from its record."""
        checked_id(self.runner_id)
        for field in ("task_id", "spec_name", "workspace_path"):
            if not isinstance(text := getattr(self, field), str):
                raise ConfigError(f"{field} {text!r} is not possible", hint='give text, "" for none')
        if self.limit is not None and (
            isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1
        ):
            raise ConfigError(
                f"a limit of {self.limit!r} is not possible", hint="give a whole number from 1, or None for no limit"
            )
        if type(self.priority) is not int or self.priority not in PRIORITIES:
            raise ConfigError(f"priority {self.priority!r} is out of range", hint="use -50 (last) to 49 (first)")
        if isinstance(self.heartbeat_timeout, bool) or not _are_seconds(self.heartbeat_timeout):
            raise ConfigError(
                f"a heartbeat timeout of {self.heartbeat_timeout!r} is not possible", hint="give seconds > 0"
            )
        return self


class RunnerInstance(NamedTuple):
    """One live runner: the lease as it lies on disk. Times are UTC; `token` is None until the lease is granted.

    `mono` is `start_time` on the boot's clock, in seconds, for arithmetic: the other one may jump."""

    runner_id: str
    task_id: str
    spec_name: str
    workspace_path: str
    start_time: datetime
    last_heartbeat: datetime
    files_locked: frozenset[str] = frozenset()
    branches_used: frozenset[str] = frozenset()
    claims: tuple[Claim, ...] = ()
    token: int | None = None
    waited_seconds: float = 0.0
    limit: int | None = None
    priority: int = 0
    heartbeat_timeout: float = 300.0
    slot: bool = True
    tree: bool = False
    holder: Identity | None = None
    details: Mapping[str, str] = {}
    mono: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The flat JSON object that is the record's file."""
        return {
            "schema": SCHEMA,
            "runner_id": self.runner_id,
            "task_id": self.task_id,
            "spec_name": self.spec_name,
            "workspace_path": self.workspace_path,
            "start_time": self.start_time.astimezone(UTC).isoformat(),
            "mono": None if self.mono is None else round(self.mono, 6),
            "last_heartbeat": self.last_heartbeat.astimezone(UTC).isoformat(),
            "files_locked": sorted(self.files_locked),
            "branches_used": sorted(self.branches_used),
            "claims": [[claim.kind, claim.path, "shared" if claim.shared else "exclusive"] for claim in self.claims],
            "token": self.token,
            "waited_seconds": round(self.waited_seconds, 6),
            "limit": self.limit,
            "priority": self.priority,
            "heartbeat_timeout": self.heartbeat_timeout,
            "slot": self.slot,
            "lifeline": "tree" if self.tree else "process",
            **(self.holder._asdict() if self.holder else {}),
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunnerInstance:
        """The reverse; unknown keys are ignored. Raises KeyError, TypeError or ValueError for what is no record."""
        return cls(
            runner_id=_text(data["runner_id"]),
            task_id=_text(data["task_id"]),
            spec_name=_text(data["spec_name"]),
            workspace_path=_text(data["workspace_path"]),
            start_time=datetime.fromisoformat(data["start_time"]).astimezone(UTC),
            last_heartbeat=datetime.fromisoformat(data["last_heartbeat"]).astimezone(UTC),
            files_locked=frozenset(map(_text, data.get("files_locked", ()))),
            branches_used=frozenset(map(_text, data.get("branches_used", ()))),
            claims=tuple(
                Claim(_text(kind), _text(path), mode == "shared") for kind, path, mode in data.get("claims", ())
            ),
            token=_whole_or_none(data.get("token")),
            waited_seconds=_seconds(data.get("waited_seconds", 0.0)),
            limit=_whole_or_none(data.get("limit")),
            priority=_whole(data.get("priority", 0)),
            heartbeat_timeout=_seconds(data.get("heartbeat_timeout", 300.0)),
            slot=data.get("slot", True) is not False,
            tree=data.get("lifeline") == "tree",
            holder=Identity.from_dict(data) if "pid" in data else None,
            details=dict(data.get("details", {})),
            mono=None if (mono := data.get("mono")) is None else _seconds(mono),
        )

    def age(self, ours: Identity, now: datetime, mono: float) -> float:
        """Seconds since `start_time`, for us whose clocks show these; by the boot's clock if theirs is the same."""
        theirs = self.holder
        same = theirs and (theirs.boot_id, theirs.time_namespace) == (ours.boot_id, ours.time_namespace)
        if same and self.mono is not None:
            return max(0.0, mono - self.mono)
        return max(0.0, (now - self.start_time).total_seconds())

    def with_claims(self, claims: tuple[Claim, ...]) -> RunnerInstance:
        """The same lease over other claims; the document's two lists follow them."""
        return self._replace(
            claims=claims,
            files_locked=frozenset(claim.name for claim in claims if claim.family == "file"),
            branches_used=frozenset(claim.name for claim in claims if claim.family == "branch"),
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def _whole_or_none(value: object) -> int | None:
    return None if value is None else _whole(value)


def _are_seconds(value: object) -> bool:
    try:
        return _seconds(value) > 0
    except ValueError:
        return False


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not value >= 0 or (isinstance(value, int) and value > 1 << 60):
        raise ValueError("expected seconds")  # the value may be a number too long to print
    return float(value)


class Holder(NamedTuple):
    """Who is in the way, and with what: the facts of one refusal. `state` is running, waiting or fenced."""

    runner_id: str
    state: str = "running"
    claim: Claim | None = None
    wanted: Claim | None = None
    token: int | None = None
    task_id: str = ""
    pid: int | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        what = str(self.claim) if self.claim else "a slot"
        verb = "is awaited ahead of you by" if self.state == "waiting" else "is held by"
        return f"{what} {verb} {self.runner_id}" + (f" ({self.facts})" if self.facts else "")

    @property
    def facts(self) -> str:
        """Which lease and process it is, and since when."""
        facts = [f"token {self.token}" if self.token else "", f"pid {self.pid}" if self.pid else ""]
        facts += [
            f"since {self.since:%H:%M:%S} UTC" if self.since else "",
            "fenced, still alive" if self.state == "fenced" else "",
        ]
        return ", ".join(fact for fact in facts if fact)


class Lease:
    """The live handle of a grant, in the process that holds it. Only the ledger makes and changes one."""

    __slots__ = ("bell", "lifeline", "mark", "pid", "record", "revision", "token", "windows")

    def __init__(self, record: RunnerInstance) -> None:
        self.record = record
        self.token: int | None = None
        self.revision = 0
        self.lifeline: int | None = None
        self.bell: int | None = None
        self.pid = 0
        self.mark: tuple[int, ...] = ()
        """The record's revision, inode, size and time of change, as last seen whole: another one was not our doing."""
        self.windows = 0
        """How many publishing windows are open."""

    @property
    def runner_id(self) -> str:
        return self.record.runner_id

    @property
    def claims(self) -> tuple[Claim, ...]:
        return self.record.claims

    def __repr__(self) -> str:
        return f"<Lease {self.runner_id} token={self.token} {len(self.claims)} claims>"
