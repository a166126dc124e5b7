"""What a run leaves behind, stored as <store>/<spec>/<task>/: diff.diff, log.log, test.json and metadata.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from necrocode.agent_runner.exceptions import ArtifactUploadError
from necrocode.agent_runner.models import Artifact, folder_name
from necrocode.statedir import put

_LONGEST = 64 << 20
"""Bytes of one log that are stored; of a longer one the end."""


class ArtifactUploader:
    """Stores files whole or not at all; a later run of the same task replaces what an earlier one stored."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def upload_artifacts(
        self, spec_name: str, task_id: str, contents: Mapping[str, bytes], facts: Mapping[str, Any]
    ) -> list[Artifact]:
        """`contents` by type (diff, log, test) into files, `facts` and their sums into metadata.json.

        Raises ArtifactUploadError naming the place and the cause."""
        folder = self.store / folder_name(spec_name or "default") / folder_name(task_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stored = [_stored(folder, kind, data) for kind, data in contents.items()]
            at = datetime.now(UTC).isoformat()
            told = {
                "spec_name": spec_name,
                "task_id": task_id,
                **facts,
                "stored_at": at,
                "artifacts": [vars(a) for a in stored],
            }
            _replace(folder / "metadata.json", json.dumps(told, indent=2).encode() + b"\n")
        except OSError as error:
            raise ArtifactUploadError(f"{folder}: {error.strerror or error}", task_id=task_id) from error
        return stored


_NAMES = {"diff": "diff.diff", "log": "log.log", "test": "test.json"}


def _stored(folder: Path, kind: str, data: bytes) -> Artifact:
    path = folder / _NAMES[kind]
    _replace(path, data)
    return Artifact(kind, f"file://{path}", len(data), hashlib.sha256(data).hexdigest())


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        put(draft, data, mode=0o644, durable=True)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def collected_logs(folder: Path) -> bytes:
    """All logs of an attempt's folder, each under its name."""
    return b"".join(_headed(path) for path in sorted(folder.glob("*.log")) if path.stat().st_size)


def _headed(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LONGEST))
        return f"==> {path.name} <==\n".encode() + file.read() + b"\n"


def contents_of(folder: Path, tests: Mapping[str, Any] | None) -> Iterator[tuple[str, bytes]]:
    """What an attempt's folder has to store: its diff (empty when nothing changed), its logs, its tests if any."""
    patch = folder / "diff.patch"
    yield "diff", patch.read_bytes() if patch.exists() else b""
    yield "log", collected_logs(folder)
    if tests is not None:
        yield "test", json.dumps(tests, indent=2).encode() + b"\n"
