"""A run's log as a file of its own: attached for as long as the run lasts, never at import."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def logged_to(path: Path | None, level: str, *, structured: bool) -> Iterator[None]:
    """Everything that necrocode logs inside, from `level` up, appended to `path`; JSON lines when `structured`.

    A file that cannot be opened is told to the other log handlers, and is no reason not to run."""
    if path is None:
        yield
        return
    package = logging.getLogger("necrocode")
    try:
        path.expanduser().parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path.expanduser(), encoding="utf-8")
    except OSError as error:
        logger.warning("nothing is logged to %s: %s", path, error)
        yield
        return
    handler.setFormatter(_Json() if structured else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(level)
    before = package.level
    package.setLevel(min(package.getEffectiveLevel(), handler.level))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)
        handler.close()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        line = {"at": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line | ({"error": self.formatException(record.exc_info)} if record.exc_info else {}))
