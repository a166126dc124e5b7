"""The host's terms, config.json: its limit and quotas."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from necrocode.errors import ConfigError, StateUnreadable
from necrocode.lease import SCHEMA
from necrocode.statedir import read_json

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, ConfigError)
"""What parsing raises for a file that is no record."""
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM)
"""What reading says of something that will never be a record: a link, a folder, a socket, not ours to read. Other
errors (a failing disk, too many open files) may pass, so they are told and prove nothing about the file."""


def read_terms(path: Path) -> tuple[int | None, dict[str, int]]:
    """The host's limit and quotas. Raises StateUnreadable for a config.json that is not one."""
    try:
        value: Any = read_json(path)
    except FileNotFoundError:
        return None, {}
    if isinstance(value, dict) and _is_terms(value):
        return value.get("limit"), value.get("quotas", {})
    raise StateUnreadable(
        str(path), 'must be {"schema": 1, "limit": null or a number from 1, "quotas": {"spec:NAME": number, ...}}'
    )


def terms_of(limit: object, quotas: Mapping[str, int]) -> dict[str, Any]:
    """What config.json says. Raises ConfigError for terms that cannot be meant."""
    if limit is not None and not _is_count(limit):
        raise ConfigError(
            f"a limit of {limit!r} is not possible", hint="give a whole number from 1, or None for no limit"
        )
    for name, count in quotas.items():
        if not name.startswith(("spec:", "user:")) or not _is_count(count):
            raise ConfigError(f"a quota {name!r}: {count!r} is not possible", hint="write spec:NAME or user:NAME")
    return {"schema": SCHEMA, "limit": limit, "quotas": dict(quotas)}


def changed(quotas: Mapping[str, int], changes: Mapping[str, int | None] | None) -> dict[str, int]:
    """These quotas with those of `changes` in their place; None removes one."""
    new = {**quotas, **(changes or {})}
    return {name: count for name, count in new.items() if count is not None}


def _is_terms(value: dict[str, Any]) -> bool:
    limit, quotas = value.get("limit"), value.get("quotas", {})
    return (
        value.get("schema", SCHEMA) == SCHEMA
        and (limit is None or _is_count(limit))
        and isinstance(quotas, dict)
        and all(map(_is_count, quotas.values()))
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
