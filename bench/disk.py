"""Where benchmarks write: memory (tmpfs), or a journaled ext4 of their own, in a file that is mounted meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("tmpfs", "ext4")
_BYTES = 6 << 30
"""Of the file, which is sparse: only what is written takes room."""


@contextmanager
def on(kind: str) -> Iterator[None]:
    """BENCH_DIR is such a file system meanwhile. Ends the program where that cannot be had."""
    before = os.environ.get("BENCH_DIR")
    with _ext4() if kind == "ext4" else _memory() as place:
        os.environ["BENCH_DIR"] = str(place)
        try:
            yield
        finally:
            os.environ.pop("BENCH_DIR")
            if before is not None:
                os.environ["BENCH_DIR"] = before


@contextmanager
def _memory() -> Iterator[Path]:
    if not os.path.isdir("/dev/shm"):
        sys.exit("there is no /dev/shm here")
    yield Path("/dev/shm")


@contextmanager
def _ext4() -> Iterator[Path]:
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        sys.exit("an ext4 of our own needs root and mkfs.ext4")
    home = Path(tempfile.mkdtemp(prefix="necrocode-ext4-", dir="/var/tmp"))
    image, mounted = home / "image", home / "mounted"
    mounted.mkdir()
    try:
        with image.open("wb") as file:
            file.truncate(_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, mounted], check=True)
        try:
            yield mounted
        finally:
            _unmount(mounted)
    finally:
        shutil.rmtree(home)


def _unmount(mounted: Path) -> None:
    """Cleanly: never lazily, since what still writes there would go on."""
    for _ in range(50):
        if subprocess.run(["umount", mounted], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", mounted], check=True)
