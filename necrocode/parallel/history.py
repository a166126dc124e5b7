"""What was carried out, by address: an entry for each member, and what a restored state need not run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr, field_serializer

from necrocode.parallel.models import ExecutionStatus


@dataclass(slots=True)
class HistoryEntry:
    """How one member ended. `address` is the place of the member: its groups, outermost first, and its name or number.

    `began` is in seconds since 1970. `storable` is False when the entry was written without its result, which was no
    JSON value; such a member is run again by a replay."""

    address: str
    status: ExecutionStatus
    group_id: str | None = None
    parallel_index: int | None = None
    result: Any = None
    error: str | None = None
    attempts: int = 0
    began: float = 0.0
    seconds: float = 0.0
    storable: bool = True

    @property
    def is_reusable(self) -> bool:
        return self.status is ExecutionStatus.COMPLETED and self.storable

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; without the result when that is no JSON value."""
        plain = is_plain(self.result)
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**data, "result": self.result if plain else None, "storable": self.storable and plain}


def is_plain(value: Any) -> bool:
    """Whether JSON gives back the same value."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


class HistorySet(BaseModel):
    """The entries in the order of their ends. What a stored state brought along is in `stored`."""

    entries: list[HistoryEntry] = Field(default_factory=list)
    _stored: dict[str, HistoryEntry] = PrivateAttr(default_factory=dict)

    @field_serializer("entries")
    def _written(self, entries: list[HistoryEntry]) -> list[dict[str, Any]]:
        return [entry.to_dict() for entry in entries]

    def model_post_init(self, context: Any) -> None:
        self._stored = {entry.address: entry for entry in self.entries if entry.is_reusable}

    def add(self, entry: HistoryEntry) -> None:
        self.entries.append(entry)

    @property
    def has_stored(self) -> bool:
        return bool(self._stored)

    def stored(self, address: str) -> HistoryEntry | None:
        """The finished member at this address that came with the stored state."""
        return self._stored.get(address)

    def of(self, address: str) -> list[HistoryEntry]:
        """All entries at this address, the newest last."""
        return [entry for entry in self.entries if entry.address == address]

    def __iter__(self) -> Iterator[HistoryEntry]:  # type: ignore[override]
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
