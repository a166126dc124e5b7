"""necrocode version: this necrocode, and everything it stands on, as a report of a mistake needs it."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import necrocode
from necrocode.door import Door, verb

_PACKAGES = (
    "click", "filelock", "platformdirs", "psutil", "pydantic", "rich", "jinja2", "prometheus-client",
    "PyYAML",
)  # fmt: skip


@verb("version")
def command(door: Door) -> None:
    """The versions of necrocode, Python, git, the system, and the packages that it uses ("-": not installed)."""
    versions = _versions()
    if door.as_json:
        return door.emit(versions)
    packages: dict[str, str | None] = versions.pop("packages")
    rows = {**versions, **packages}
    width = max(map(len, rows))
    return door.show("\n".join(f"{name:<{width}}  {found or '-'}" for name, found in rows.items()))


def _versions() -> dict[str, Any]:
    return {
        "necrocode": necrocode.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "git": _git(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _of(name) for name in _PACKAGES},
    }


def _git() -> str | None:
    from necrocode import git
    from necrocode.errors import NecrocodeError

    try:
        return git.run("version", cwd="/").stdout.strip().removeprefix("git version ")
    except (NecrocodeError, OSError):
        return None


def _of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
